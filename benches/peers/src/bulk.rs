//! Other ways to give a process a long value: `ipc-channel`, and Python's multiprocessing.

use ipc_channel::ipc::{
    self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcReceiver, IpcSender,
    IpcSharedMemory,
};
use offshoot_benches::engine::{Failure, Subject};
use offshoot_benches::question::bulk::{SIZES, count, size, socket_name, unit};
use offshoot_benches::record::{Kind, Row, Side};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// All that is asked.
pub(crate) fn subjects() -> Vec<Subject> {
    vec![
        ipc_channel(false),
        ipc_channel(true),
        python("bytes", PICKLED),
        python("shared memory", SHARED),
    ]
}

/// Says to this program that it is the other side of `ipc-channel`, and by which name it connects.
const ROLE: &str = "OFFSHOOT_PEERS_IPC";

/// Becomes the other side, if this process was started to be it; then it does not return.
pub(crate) fn enter() {
    let Ok(name) = std::env::var(ROLE) else {
        return;
    };
    std::process::exit(i32::from(serve(name).is_err()));
}

/// What the other side gives to the one that measures.
type Ends = (IpcBytesSender, IpcSender<IpcSharedMemory>, IpcReceiver<u64>);

fn serve(name: String) -> Result<(), Failure> {
    let (bytes_sender, bytes): (_, IpcBytesReceiver) = ipc::bytes_channel()?;
    let (memory_sender, memory) = ipc::channel::<IpcSharedMemory>()?;
    let (answer, answers) = ipc::channel()?;
    IpcSender::<Ends>::connect(name)?.send((bytes_sender, memory_sender, answers))?;
    let answer_memory = answer.clone();
    std::thread::spawn(move || {
        while let Ok(value) = memory.recv() {
            if answer_memory.send(sum(&value)).is_err() {
                return;
            }
        }
    });
    while let Ok(value) = bytes.recv() {
        answer.send(sum(&value))?;
    }
    Ok(())
}

/// Its length: what was received whole needs not be looked at.
fn sum(value: &[u8]) -> u64 {
    value.len() as u64
}

struct Far {
    child: Child,
    ends: Ends,
}

impl Far {
    fn start() -> Result<Far, Failure> {
        let (server, name) = IpcOneShotServer::<Ends>::new()?;
        let child = Command::new(std::env::current_exe()?)
            .env(ROLE, name)
            .spawn()?;
        let (_, ends) = server.accept()?;
        Ok(Far { child, ends })
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rows(who: &str, note: &'static str) -> Vec<Row> {
    SIZES
        .map(|bytes| {
            Row::new(Kind::Peer, Side::Process, format!("{who}, {}", size(bytes)))
                .unit(unit(bytes))
                .floor(socket_name(bytes))
                .note(note)
                .not_charted()
        })
        .into()
}

fn ipc_channel(shared: bool) -> Subject {
    let (key, rows) = match shared {
        false => (
            "ipc-channel",
            rows("ipc-channel's bytes", "a copy through the kernel"),
        ),
        true => (
            "ipc-channel-shared",
            rows(
                "ipc-channel's shared memory",
                "new memory for each value, filled, then given",
            ),
        ),
    };
    let mut far = None;
    Subject::new(key, rows, move |into| {
        let far: &mut Far = match &mut far {
            Some(far) => far,
            far => far.insert(Far::start()?),
        };
        let (bytes, memory, answers) = &far.ends;
        for (row, len) in SIZES.into_iter().enumerate() {
            let value = vec![7_u8; len];
            for _ in 0..count(len) {
                let start = Instant::now();
                match shared {
                    false => bytes.send(&value)?,
                    true => memory.send(IpcSharedMemory::from_bytes(&value))?,
                }
                let answer = answers.recv()?;
                into.time(row, start.elapsed());
                if answer != len as u64 {
                    return Err(Failure::from("a wrong answer"));
                }
            }
        }
        Ok(())
    })
}

/// Sends bytes, which multiprocessing pickles.
const PICKLED: &str = "
def child(pipe):
    while True:
        value = pipe.recv()
        if value is None: return
        pipe.send(len(value))
def send(pipe, value):
    pipe.send(value)
    assert pipe.recv() == len(value)
";

/// Copies bytes into shared memory that is used again, of which the other side makes bytes.
const SHARED: &str = "
from multiprocessing import shared_memory
kept = {}
def child(pipe):
    while True:
        message = pipe.recv()
        if message is None: return
        name, size = message
        if name not in kept: kept[name] = shared_memory.SharedMemory(name=name)
        value = bytes(kept[name].buf[:size])
        pipe.send(len(value))
def send(pipe, value):
    size = len(value)
    if size not in kept: kept[size] = shared_memory.SharedMemory(create=True, size=size)
    kept[size].buf[:size] = value
    pipe.send((kept[size].name, size))
    assert pipe.recv() == size
def clean():
    for memory in kept.values():
        memory.close()
        memory.unlink()
";

/// Prints a line for each value: which size, and the nanoseconds it took.
const MEASURE: &str = "
import multiprocessing, sys, time
if __name__ == '__main__':
    context = multiprocessing.get_context('forkserver')
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there,))
    process.start()
    for row, argument in enumerate(sys.argv[1:]):
        size, count = map(int, argument.split(':'))
        value = b'7' * size
        send(here, value[:64])
        for n in range(count):
            start = time.perf_counter_ns()
            send(here, value)
            print(row, time.perf_counter_ns() - start)
    here.send(None)
    process.join()
    if 'clean' in globals(): clean()
";

fn python(how: &'static str, script: &'static str) -> Subject {
    let rows = rows(
        &format!("Python's multiprocessing, {how}"),
        "a pipe and pickle",
    );
    Subject::new("python-bulk", rows, move |into| {
        // A file, because its children import it.
        let name = format!("offshoot-peers-bulk-{}.py", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, format!("{script}{MEASURE}"))?;
        let sizes = SIZES.map(|len| format!("{len}:{}", count(len)));
        let output = Command::new("python3").arg(&path).args(sizes).output();
        std::fs::remove_file(&path)?;
        let output = output.map_err(|error| format!("python3: {error}"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("python3: {}: {why}", output.status).into());
        }
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let numbers = line.split_once(' ');
            let numbers =
                numbers.and_then(|(row, took)| Some((row.parse().ok()?, took.parse().ok()?)));
            let (row, took) = numbers.ok_or_else(|| format!("python3 printed `{line}`"))?;
            into.time(row, Duration::from_nanos(took));
        }
        Ok(())
    })
}
