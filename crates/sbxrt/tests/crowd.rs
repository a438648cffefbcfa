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
    ("a_sandbox_takes_no_more_for_the_others_there_are", || {
        Box::pin(a_sandbox_takes_no_more_for_the_others_there_are())
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
    let mut pids: Vec<Pid> = tasks
        .flat_map(|task| children(task.path().to_str().unwrap()))
        .filter(|pid| {
            // One that has been killed may not have been waited for yet.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.contains(") Z ")
        })
        .collect();
    pids.sort_unstable();
    pids
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

async fn a_sandbox_takes_no_more_for_the_others_there_are() {
    const SOME: usize = 10;
    let (sandbox, _directory) = sandbox(Engine::builder().launchers(1)).await;
    let mut sleeping = Vec::new();
    for _ in 0..150 {
        sleeping.push(asleep(&sandbox).await);
    }
    // In the order of their birth.
    let launcher = launchers()[0];
    let mut memory: Vec<u64> = children(&format!("/proc/{launcher}/task/{launcher}"))
        .into_iter()
        .filter(|&pid| name(pid) == "sbxrt-init")
        .filter_map(private_memory)
        .collect();
    assert_eq!(memory.len(), sleeping.len());
    let middle = |memory: &mut [u64]| {
        memory.sort_unstable();
        memory[memory.len() / 2]
    };
    let end = memory.len() - SOME;
    let (first, last) = (middle(&mut memory[..SOME]), middle(&mut memory[end..]));
    // Each of them is known to the launcher by 4 KiB.
    assert!(last < first + 256, "{first} KiB, then {last} KiB");

    // Whoever forks for the launcher can be done without.
    let nursery = children(&format!("/proc/{launcher}/task/{launcher}"));
    let nursery = nursery
        .into_iter()
        .find(|&pid| name(pid) == "sbxrt-nursery");
    kill(nursery.unwrap(), Signal::SIGKILL).unwrap();
    for _ in 0..3 {
        let output = sandbox.command("true").output().await.unwrap();
        assert_eq!(output.termination, Termination::Exited { code: 0 });
    }
    drop(sleeping);
    // It goes when there is nothing more to do.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !children(&format!("/proc/{launcher}/task/{launcher}")).is_empty() {
        assert!(Instant::now() < deadline, "the launcher has children");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn children(task: &str) -> Vec<Pid> {
    let children = std::fs::read_to_string(format!("{task}/children")).unwrap_or_default();
    let pids = children.split_ascii_whitespace();
    pids.map(|pid| Pid::from_raw(pid.parse().unwrap()))
        .collect()
}

fn name(pid: Pid) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

/// What nobody else has of a process's memory, in KiB.
fn private_memory(pid: Pid) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Private_Dirty:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
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
