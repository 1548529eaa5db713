//! Socket addresses, and what can be turned into them.

use crate::unblock;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs};

/// What a socket can be bound or connected to: a `SocketAddr`, an address or name with a port, or
/// a text `"host:port"`.
///
/// As [`std::net::ToSocketAddrs`], except that a name is looked up without blocking the isolate.
pub trait ToAddresses {
    /// What it stands for.
    fn to_addresses(&self) -> Addresses;
}

/// What a [`ToAddresses`] stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// These, to be tried in this order.
    Known(Vec<SocketAddr>),
    /// Those of this host, with this port.
    Host(String, u16),
    /// Those of this text, `host:port`.
    Text(String),
}

impl Addresses {
    /// The addresses, at least one. A name is looked up by the system's resolver on a thread for
    /// blocking work.
    pub(super) async fn resolve(self) -> io::Result<Vec<SocketAddr>> {
        let found = match &self {
            Addresses::Known(known) => known.clone(),
            name => {
                let wanted = name.clone();
                let found = unblock(move || wanted.look_up()).await?;
                found.map_err(|error| {
                    io::Error::new(error.kind(), format!("cannot look up {name}: {error}"))
                })?
            }
        };
        if found.is_empty() {
            let message = format!("there is no address for {self}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(found)
    }

    fn look_up(self) -> io::Result<Vec<SocketAddr>> {
        Ok(match self {
            Addresses::Known(known) => known,
            Addresses::Host(host, port) => (host, port).to_socket_addrs()?.collect(),
            Addresses::Text(text) => text.to_socket_addrs()?.collect(),
        })
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addresses::Known(known) => write!(f, "{known:?}"),
            Addresses::Host(host, port) => write!(f, "{host}:{port}"),
            Addresses::Text(text) => f.write_str(text),
        }
    }
}

impl<T: ToAddresses + ?Sized> ToAddresses for &T {
    fn to_addresses(&self) -> Addresses {
        (**self).to_addresses()
    }
}

macro_rules! known {
    ($($type:ty),* $(,)?) => {$(
        impl ToAddresses for $type {
            fn to_addresses(&self) -> Addresses {
                Addresses::Known(vec![SocketAddr::from(*self)])
            }
        }
    )*};
}

known!(
    SocketAddr,
    SocketAddrV4,
    SocketAddrV6,
    (IpAddr, u16),
    (Ipv4Addr, u16),
    (Ipv6Addr, u16),
);

impl ToAddresses for [SocketAddr] {
    fn to_addresses(&self) -> Addresses {
        Addresses::Known(self.to_vec())
    }
}

impl ToAddresses for str {
    fn to_addresses(&self) -> Addresses {
        match self.parse() {
            Ok(address) => Addresses::Known(vec![address]),
            Err(_) => Addresses::Text(self.to_owned()),
        }
    }
}

impl ToAddresses for String {
    fn to_addresses(&self) -> Addresses {
        self.as_str().to_addresses()
    }
}

impl ToAddresses for (&str, u16) {
    fn to_addresses(&self) -> Addresses {
        let (host, port) = *self;
        match host.parse::<IpAddr>() {
            Ok(address) => (address, port).to_addresses(),
            Err(_) => Addresses::Host(host.to_owned(), port),
        }
    }
}

impl ToAddresses for (String, u16) {
    fn to_addresses(&self) -> Addresses {
        (self.0.as_str(), self.1).to_addresses()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_have_to_be_looked_up() {
        let home = Addresses::Known(vec![([127, 0, 0, 1], 80).into()]);
        assert_eq!("127.0.0.1:80".to_addresses(), home);
        assert_eq!(("127.0.0.1", 80).to_addresses(), home);
        assert_eq!((Ipv4Addr::LOCALHOST, 80).to_addresses(), home);
        assert_eq!(String::from("127.0.0.1:80").to_addresses(), home);
        let host = Addresses::Host("localhost".to_owned(), 80);
        assert_eq!(("localhost", 80).to_addresses(), host);
        let text = Addresses::Text("localhost:80".to_owned());
        assert_eq!("localhost:80".to_addresses(), text);
        assert_eq!(host.look_up().unwrap(), text.look_up().unwrap());
    }
}
