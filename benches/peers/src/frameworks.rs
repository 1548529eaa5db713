//! ractor, kameo, actix and plain tokio, each as its documentation shows it.

use crate::peer::{Peer, subject};
use offshoot_benches::engine::Subject;
use offshoot_benches::question::tell::Order;
use std::sync::LazyLock;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

const TASK: Option<&str> = Some("a task on a shared pool");
/// How many messages wait, where that is bounded.
const BOUND: usize = 1_024;

/// All that can be asked a question.
pub(crate) fn subjects(question: &str) -> Vec<Subject> {
    [
        subject::<TokioThread>(question),
        subject::<KameoThread>(question),
        subject::<ActixArbiter>(question),
        subject::<RactorThread>(question),
        subject::<TokioTask>(question),
        subject::<Kameo>(question),
        subject::<Actix>(question),
        subject::<Ractor>(question),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Of two workers, as many as the smallest machine has cores.
static TOKIO: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a tokio runtime")
});

fn on_tokio<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    // As a task, which is how an actor calls another, and not from a thread outside.
    let task = TOKIO.spawn(future);
    TOKIO.block_on(task).expect("it does not panic")
}

/// A message to an actor of plain tokio.
enum Message {
    Ask(u64, oneshot::Sender<u64>),
    Tell(Order),
}

async fn serve(mut inbox: mpsc::Receiver<Message>) {
    let mut sum = 0_u64;
    while let Some(message) = inbox.recv().await {
        match message {
            Message::Ask(by, answer) => {
                sum = sum.wrapping_add(by);
                let _ = answer.send(sum);
            }
            Message::Tell(order) => sum = sum.wrapping_add(order.parts[0]),
        }
    }
}

async fn ask_tokio(sender: &mpsc::Sender<Message>, by: u64) -> u64 {
    let (answer, answered) = oneshot::channel();
    let _ = sender.send(Message::Ask(by, answer)).await;
    answered.await.expect("an answer")
}

struct TokioTask;

impl Peer for TokioTask {
    const KEY: &'static str = "tokio";
    const NAME: &'static str = "tokio task";
    const NOTE: Option<&'static str> = TASK;
    type Actor = (mpsc::Sender<Message>, tokio::task::JoinHandle<()>);

    fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
        on_tokio(future)
    }

    async fn spawn() -> Self::Actor {
        let (sender, inbox) = mpsc::channel(BOUND);
        (sender, tokio::spawn(serve(inbox)))
    }

    async fn ask(actor: &Self::Actor, by: u64) -> u64 {
        ask_tokio(&actor.0, by).await
    }

    async fn tell(actor: &Self::Actor, order: Order) {
        let _ = actor.0.send(Message::Tell(order)).await;
    }

    async fn stop((sender, task): Self::Actor) {
        drop(sender);
        let _ = task.await;
    }
}

struct TokioThread;

impl Peer for TokioThread {
    const KEY: &'static str = "tokio-thread";
    const NAME: &'static str = "thread with a tokio runtime";
    const NOTE: Option<&'static str> = None;
    type Actor = (mpsc::Sender<Message>, std::thread::JoinHandle<()>);

    /// The caller is on a thread with a runtime of its own, as the others are.
    fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime.expect("a tokio runtime").block_on(future)
    }

    async fn spawn() -> Self::Actor {
        let (sender, inbox) = mpsc::channel(BOUND);
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            runtime.expect("a tokio runtime").block_on(serve(inbox));
        });
        (sender, thread)
    }

    async fn ask(actor: &Self::Actor, by: u64) -> u64 {
        ask_tokio(&actor.0, by).await
    }

    async fn tell(actor: &Self::Actor, order: Order) {
        let _ = actor.0.send(Message::Tell(order)).await;
    }

    async fn stop((sender, thread): Self::Actor) {
        drop(sender);
        let _ = thread.join();
    }
}

#[derive(kameo::Actor)]
struct KameoSum(u64);

struct KameoAsk(u64);

impl kameo::message::Message<KameoAsk> for KameoSum {
    type Reply = u64;

    async fn handle(
        &mut self,
        ask: KameoAsk,
        _: &mut kameo::message::Context<Self, Self::Reply>,
    ) -> u64 {
        self.0 = self.0.wrapping_add(ask.0);
        self.0
    }
}

struct KameoTell(Order);

impl kameo::message::Message<KameoTell> for KameoSum {
    type Reply = ();

    async fn handle(&mut self, tell: KameoTell, _: &mut kameo::message::Context<Self, ()>) {
        self.0 = self.0.wrapping_add(tell.0.parts[0]);
    }
}

macro_rules! kameo {
    ($peer:ident, $key:literal, $name:literal, $note:expr, $spawn:ident) => {
        struct $peer;

        impl Peer for $peer {
            const KEY: &'static str = $key;
            const NAME: &'static str = $name;
            const NOTE: Option<&'static str> = $note;
            type Actor = kameo::actor::ActorRef<KameoSum>;

            fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
                on_tokio(future)
            }

            async fn spawn() -> Self::Actor {
                use kameo::actor::Spawn as _;
                KameoSum::$spawn(KameoSum(0))
            }

            async fn ask(actor: &Self::Actor, by: u64) -> u64 {
                actor.ask(KameoAsk(by)).await.expect("an answer")
            }

            async fn tell(actor: &Self::Actor, order: Order) {
                let _ = actor.tell(KameoTell(order)).await;
            }

            async fn stop(actor: Self::Actor) {
                let _ = actor.stop_gracefully().await;
                actor.wait_for_shutdown().await;
            }
        }
    };
}
kameo!(Kameo, "kameo", "kameo actor", TASK, spawn);
kameo!(
    KameoThread,
    "kameo-thread",
    "kameo actor in a thread",
    None,
    spawn_in_thread
);

struct ActixSum(u64);

impl actix::Actor for ActixSum {
    type Context = actix::Context<Self>;
}

#[derive(actix::Message)]
#[rtype(result = "u64")]
struct ActixAsk(u64);

impl actix::Handler<ActixAsk> for ActixSum {
    type Result = u64;

    fn handle(&mut self, ask: ActixAsk, _: &mut Self::Context) -> u64 {
        self.0 = self.0.wrapping_add(ask.0);
        self.0
    }
}

#[derive(actix::Message)]
#[rtype(result = "()")]
struct ActixTell(Order);

impl actix::Handler<ActixTell> for ActixSum {
    type Result = ();

    fn handle(&mut self, tell: ActixTell, _: &mut Self::Context) {
        self.0 = self.0.wrapping_add(tell.0.parts[0]);
    }
}

#[derive(actix::Message)]
#[rtype(result = "()")]
struct ActixStop;

impl actix::Handler<ActixStop> for ActixSum {
    type Result = ();

    fn handle(&mut self, _: ActixStop, context: &mut Self::Context) {
        use actix::ActorContext as _;
        context.stop();
    }
}

fn on_actix<T>(future: impl Future<Output = T>) -> T {
    actix::System::new().block_on(future)
}

struct Actix;

impl Peer for Actix {
    const KEY: &'static str = "actix";
    const NAME: &'static str = "actix actor";
    const NOTE: Option<&'static str> = Some("a task on its caller's own thread");
    type Actor = actix::Addr<ActixSum>;

    fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
        on_actix(future)
    }

    async fn spawn() -> Self::Actor {
        use actix::Actor as _;
        ActixSum(0).start()
    }

    async fn ask(actor: &Self::Actor, by: u64) -> u64 {
        actor.send(ActixAsk(by)).await.expect("an answer")
    }

    async fn tell(actor: &Self::Actor, order: Order) {
        // The unbounded way, which does not wait for the answer.
        actor.do_send(ActixTell(order));
    }

    async fn stop(actor: Self::Actor) {
        let _ = actor.send(ActixStop).await;
    }
}

struct ActixArbiter;

impl Peer for ActixArbiter {
    const KEY: &'static str = "actix-arbiter";
    const NAME: &'static str = "actix actor in an arbiter";
    const NOTE: Option<&'static str> = None;
    type Actor = (actix::Addr<ActixSum>, actix::Arbiter);

    fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
        on_actix(future)
    }

    async fn spawn() -> Self::Actor {
        use actix::Actor as _;
        let arbiter = actix::Arbiter::new();
        let actor = ActixSum::start_in_arbiter(&arbiter.handle(), |_| ActixSum(0));
        (actor, arbiter)
    }

    async fn ask(actor: &Self::Actor, by: u64) -> u64 {
        actor.0.send(ActixAsk(by)).await.expect("an answer")
    }

    async fn tell(actor: &Self::Actor, order: Order) {
        actor.0.do_send(ActixTell(order));
    }

    async fn stop((actor, arbiter): Self::Actor) {
        drop(actor);
        arbiter.stop();
        let _ = arbiter.join();
    }
}

enum RactorMessage {
    Ask(u64, ractor::RpcReplyPort<u64>),
    Tell(Order),
}

impl RactorMessage {
    fn apply(self, sum: &mut u64) {
        match self {
            RactorMessage::Ask(by, answer) => {
                *sum = sum.wrapping_add(by);
                let _ = answer.send(*sum);
            }
            RactorMessage::Tell(order) => *sum = sum.wrapping_add(order.parts[0]),
        }
    }
}

#[derive(Default)]
struct RactorSum;

impl ractor::Actor for RactorSum {
    type Msg = RactorMessage;
    type State = u64;
    type Arguments = u64;

    async fn pre_start(
        &self,
        _: ractor::ActorRef<Self::Msg>,
        sum: u64,
    ) -> Result<u64, ractor::ActorProcessingErr> {
        Ok(sum)
    }

    async fn handle(
        &self,
        _: ractor::ActorRef<Self::Msg>,
        message: Self::Msg,
        sum: &mut u64,
    ) -> Result<(), ractor::ActorProcessingErr> {
        message.apply(sum);
        Ok(())
    }
}

#[derive(Default)]
struct RactorLocalSum;

impl ractor::thread_local::ThreadLocalActor for RactorLocalSum {
    type Msg = RactorMessage;
    type State = u64;
    type Arguments = u64;

    async fn pre_start(
        &self,
        _: ractor::ActorRef<Self::Msg>,
        sum: u64,
    ) -> Result<u64, ractor::ActorProcessingErr> {
        Ok(sum)
    }

    async fn handle(
        &self,
        _: ractor::ActorRef<Self::Msg>,
        message: Self::Msg,
        sum: &mut u64,
    ) -> Result<(), ractor::ActorProcessingErr> {
        message.apply(sum);
        Ok(())
    }
}

type RactorActor = (ractor::ActorRef<RactorMessage>, tokio::task::JoinHandle<()>);

async fn ask_ractor(actor: &RactorActor, by: u64) -> u64 {
    let answer = actor
        .0
        .call(|port| RactorMessage::Ask(by, port), None)
        .await;
    answer
        .ok()
        .map(ractor::rpc::CallResult::unwrap)
        .expect("an answer")
}

macro_rules! ractor {
    ($peer:ident, $key:literal, $name:literal, $note:expr, $spawn:expr) => {
        struct $peer;

        impl Peer for $peer {
            const KEY: &'static str = $key;
            const NAME: &'static str = $name;
            const NOTE: Option<&'static str> = $note;
            type Actor = RactorActor;

            fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
                on_tokio(future)
            }

            async fn spawn() -> Self::Actor {
                $spawn.await.expect("an actor")
            }

            async fn ask(actor: &Self::Actor, by: u64) -> u64 {
                ask_ractor(actor, by).await
            }

            async fn tell(actor: &Self::Actor, order: Order) {
                let _ = actor.0.send_message(RactorMessage::Tell(order));
            }

            async fn stop((actor, task): Self::Actor) {
                actor.stop(None);
                let _ = task.await;
            }
        }
    };
}
ractor!(
    Ractor,
    "ractor",
    "ractor actor",
    TASK,
    <RactorSum as ractor::Actor>::spawn(None, RactorSum, 0)
);
ractor!(
    RactorThread,
    "ractor-thread",
    "ractor thread-local actor, a thread each",
    None,
    <RactorLocalSum as ractor::thread_local::ThreadLocalActor>::spawn(
        None,
        0,
        ractor::thread_local::ThreadLocalActorSpawner::new()
    )
);
