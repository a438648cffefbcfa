//! Many executions of one engine at once: how they are shared among launchers, what becomes of them where one of those is
//! killed, and that those for which there is no room wait. With this machine's own programs.
//!
//! A test without a harness, because a copy of it becomes the launcher.

#![expect(clippy::print_stdout, reason = "a test speaks to its reader")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::pin::Pin;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sbxrt::{
    Child, Concurrency, Engine, EngineBuilder, Limits, Mount, RuntimeError, Sandbox, Termination,
};
use tokio::task::JoinSet;

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

const TESTS: &[Test] = &[
    ("a_launcher_is_started_where_all_others_are_busy", || {
        Box::pin(a_launcher_is_started_where_all_others_are_busy())
    }),
    ("the_death_of_a_launcher_ends_what_it_runs_alone", || {
        Box::pin(the_death_of_a_launcher_ends_what_it_runs_alone())
    }),
    ("who_does_not_fit_waits", || {
        Box::pin(who_does_not_fit_waits())
    }),
    ("a_given_up_turn_is_the_next_ones", || {
        Box::pin(a_given_up_turn_is_the_next_ones())
    }),
];

fn main() {
    sbxrt::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is = |option: &str| arguments.iter().any(|argument| argument == option);
    if is("--list") {
        if !is("--ignored") {
            for (name, _) in TESTS {
                println!("{name}: test");
            }
        }
        return;
    }
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let is_chosen = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    for (name, test) in TESTS.iter().filter(|(name, _)| is_chosen(name)) {
        println!("{name}");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(test());
    }
}

/// A sandbox of this machine's programs, which share the directory `/shared`; and where the engine's things are.
async fn sandbox(builder: EngineBuilder) -> (Sandbox, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let engine = builder.open(directory.path().join("store")).unwrap();
    let image = engine.pull("host:").await.unwrap();
    let limits = Limits {
        wall_time: Some(Duration::from_secs(120)),
        ..Limits::default()
    };
    let sandbox = engine.sandbox(&image).limits(limits);
    let sandbox = sandbox.mount(Mount::read_write(shared, "/shared"));
    (sandbox.build().unwrap(), directory)
}

async fn asleep(sandbox: &Sandbox) -> Child {
    let mut child = sandbox.command("sleep").arg("100").spawn().unwrap();
    assert!(child.started().await.unwrap().is_none());
    child
}

/// The launchers: this process's children, in the order of their birth.
fn launchers() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut pids: Vec<i32> = tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|children| {
            let pids = children.split_ascii_whitespace();
            pids.map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()
        })
        .filter(|pid| {
            // One that has been killed may not have been waited for yet.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.contains(") Z ")
        })
        .collect();
    pids.sort_unstable();
    pids.into_iter().map(Pid::from_raw).collect()
}

async fn a_launcher_is_started_where_all_others_are_busy() {
    let (sandbox, _directory) = sandbox(Engine::builder().launchers(2)).await;
    assert_eq!(launchers().len(), 0);
    for _ in 0..3 {
        let output = sandbox.command("true").output().await.unwrap();
        assert_eq!(output.termination, Termination::Exited { code: 0 });
        assert_eq!(launchers().len(), 1);
    }
    let mut sleeping = Vec::new();
    for expected in [1, 2, 2, 2] {
        sleeping.push(asleep(&sandbox).await);
        assert_eq!(launchers().len(), expected);
    }
    drop((sleeping, sandbox));
    assert_eq!(launchers().len(), 0);
}

async fn the_death_of_a_launcher_ends_what_it_runs_alone() {
    let (sandbox, _directory) = sandbox(Engine::builder().launchers(2)).await;
    let mut first = asleep(&sandbox).await;
    let mut second = asleep(&sandbox).await;
    let before = launchers();
    assert_eq!(before.len(), 2);
    kill(before[0], Signal::SIGKILL).unwrap();
    let error = first.wait().await.unwrap_err();
    let is_gone = matches!(error, sbxrt::Error::Runtime(RuntimeError::LauncherGone));
    assert!(is_gone, "{error:?}");
    drop(first);
    // Its place is the emptiest, so that the next one would go there.
    for _ in 0..3 {
        let output = sandbox.command("true").output().await.unwrap();
        assert_eq!(output.termination, Termination::Exited { code: 0 });
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while launchers().contains(&before[0]) {
        assert!(
            Instant::now() < deadline,
            "the dead launcher is still there"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = launchers();
    assert_eq!((after.len(), after.contains(&before[1])), (2, true));
    second.signal(15).unwrap();
    let report = second.wait().await.unwrap();
    assert_eq!(report.termination, Termination::Signaled { signal: 15 });
}

async fn who_does_not_fit_waits() {
    const MOST: usize = 3;
    let builder = Engine::builder().concurrency(Concurrency::AtMost(MOST));
    let (sandbox, _directory) = sandbox(builder).await;
    let script = "touch /shared/run.$HOSTNAME; ls /shared | grep -c run; sleep 0.05; \
        ls /shared | grep -c run; rm /shared/run.$HOSTNAME";
    let mut executions = JoinSet::new();
    for _ in 0..30 {
        let command = sandbox.command("sh").args(["-c", script]);
        executions.spawn(async move { command.output().await });
    }
    let mut together = 0;
    while let Some(output) = executions.join_next().await {
        let output = output.unwrap().unwrap();
        assert_eq!(output.termination, Termination::Exited { code: 0 });
        let counts = String::from_utf8(output.stdout.bytes).unwrap();
        let counts = counts.lines().map(|count| count.parse::<usize>().unwrap());
        together = together.max(counts.max().unwrap());
    }
    assert!((1..=MOST).contains(&together), "{together} at once");
}

async fn a_given_up_turn_is_the_next_ones() {
    let builder = Engine::builder().concurrency(Concurrency::AtMost(1));
    let (sandbox, _directory) = sandbox(builder).await;
    let first = sandbox.command("sleep").arg("100");
    let mut first = first.spawn_in_turn().await.unwrap();
    assert!(first.started().await.unwrap().is_none());
    let second = sandbox.command("true");
    let second = tokio::spawn(async move { second.output().await });
    // It does not ask for a turn.
    let mut beside = sandbox.command("true").spawn().unwrap();
    let report = beside.wait().await.unwrap();
    assert_eq!(report.termination, Termination::Exited { code: 0 });
    assert!(!second.is_finished());
    drop(first);
    let output = second.await.unwrap().unwrap();
    assert_eq!(output.termination, Termination::Exited { code: 0 });
}
