//! `sbxrt-bench many`, `flood`, `endure` and `timeouts`: many executions that stay, many that come at once, many in a row,
//! and some that mean to stay; all through one engine in one process, as in a service.

use std::process::{Child as Process, Command as Program, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sbxrt::{Child, Concurrency, Engine, Image, Limits, Termination};
use sbxrt_tests::{descendants, eventually};
use serde_json::json;
use tokio::task::JoinSet;

use crate::census::{Census, children};
use crate::{pooled, quantile};

/// What they have in common.
struct Setting {
    engine: Engine,
    image: Image,
    /// How many executions.
    runs: usize,
}

/// Measures as `NAME ROOTFS RUNS [LAUNCHERS [AT-ONCE]]` asks.
pub(crate) fn run(name: &str, arguments: &[String]) -> Result<(), String> {
    let (Some(rootfs), Some(numbers)) = (arguments.first(), arguments.get(1..)) else {
        return Err(format!(
            "usage: sbxrt-bench {name} ROOTFS RUNS [LAUNCHERS [AT-ONCE]]"
        ));
    };
    let numbers = numbers.iter().map(|number| {
        let parsed = number.parse::<usize>();
        parsed.map_err(|error| format!("{number}: {error}"))
    });
    let numbers: Vec<usize> = numbers.collect::<Result<_, _>>()?;
    let runs = numbers.first().copied().unwrap_or(1);
    let mut builder = Engine::builder();
    if let Some(&launchers) = numbers.get(1) {
        builder = builder.launchers(launchers);
    }
    if let Some(&most) = numbers.get(2) {
        builder = builder.concurrency(Concurrency::AtMost(most));
    }
    // Each execution has some pipes and sockets here.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| error.to_string())?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(|error| error.to_string())?;
    let store = tempfile::tempdir().map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let result = runtime.block_on(async {
        let engine = builder.open(store.path())?;
        let image = engine.pull(&format!("dir:{rootfs}")).await?;
        let setting = Setting {
            engine,
            image,
            runs,
        };
        match name {
            "many" => setting.many().await,
            "flood" => setting.flood().await,
            "endure" => setting.endure().await,
            "pool" => pooled::run(&setting.engine, &setting.image, setting.runs).await,
            _ => setting.timeouts().await,
        }
    });
    result.map_err(|error: sbxrt::Error| describe(&error))
}

fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", describe(source)),
        None => error.to_string(),
    }
}

impl Setting {
    /// Starts so many sandboxes that sleep, counts what they cost, and ends them all.
    async fn many(&self) -> sbxrt::Result<()> {
        let sandbox = self.engine.sandbox(&self.image).build()?;
        // All launchers are there, and everything has been touched once.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let warm = sandbox.command("sleep").arg("0.2");
        let warm = (0..2 * processors).map(|_| warm.spawn());
        for mut child in warm.collect::<sbxrt::Result<Vec<_>>>()? {
            child.wait().await?;
        }
        let before = Census::take();
        let mut asleep: Vec<Child> = Vec::with_capacity(self.runs);
        let mut starts = Vec::with_capacity(self.runs);
        for _ in 0..self.runs {
            let began = Instant::now();
            let mut child = sandbox.command("sleep").arg("100000").spawn()?;
            if let Some(report) = child.started().await? {
                let end = format!("{:?}", report.termination);
                return Err(std::io::Error::other(end).into());
            }
            starts.push(began.elapsed().as_secs_f64() * 1000.0);
            asleep.push(child);
        }
        let processor = processor_time();
        let watched = Instant::now();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let idle = (processor_time() - processor) / watched.elapsed().as_secs_f64();
        let during = Census::take();
        let began = Instant::now();
        drop(asleep);
        // The launchers stay.
        let own = std::process::id();
        let ended = eventually(Duration::from_secs(60), || {
            descendants(own).len() == children(own).len()
        });
        let ending = began.elapsed();
        let after = Census::take_settled(&before);
        let few = (self.runs / 20).max(1);
        let start = |part: &[f64]| quantile(part, 0.5);
        let (first, last) = (start(&starts[..few]), start(&starts[self.runs - few..]));
        #[expect(clippy::cast_precision_loss, reason = "a table shows three digits")]
        let each =
            |of: fn(&Census) -> u64| (of(&during) as f64 - of(&before) as f64) / self.runs as f64;
        println!("\n{} sandboxes asleep at once", self.runs);
        println!("  start of the first {few}, median   {first:>9.2} ms");
        println!(
            "  start of the last {few}, median    {last:>9.2} ms ({:.2} of the first)",
            last / first
        );
        println!(
            "  all ended after                 {:>9.2} s{}",
            ending.as_secs_f64(),
            if ended { "" } else { ", but not all" }
        );
        println!("  processors while all sleep      {idle:>9.3}");
        println!("  each takes");
        println!(
            "    proportional memory           {:>9.1} KiB",
            each(|it| it.proportional) / 1024.0
        );
        println!(
            "    the machine's memory          {:>9.1} KiB",
            -each(|it| it.available) / 1024.0
        );
        println!(
            "    processes                     {:>9.2}",
            each(|it| it.processes)
        );
        println!(
            "    open files outside            {:>9.2}",
            each(|it| it.files)
        );
        println!(
            "    cgroups                       {:>9.2}",
            each(|it| it.cgroups)
        );
        println!(
            "    network namespaces            {:>9.2}",
            each(|it| it.net_namespaces)
        );
        println!("  before {}", before.to_json());
        println!("  after  {}", after.to_json());
        Ok(())
    }

    /// Asks for so many short programs at once.
    async fn flood(&self) -> sbxrt::Result<()> {
        let sandbox = self.engine.sandbox(&self.image).build()?;
        sandbox.command("true").output().await?;
        let began = Instant::now();
        let mut executions = JoinSet::new();
        for _ in 0..self.runs {
            let command = sandbox.command("true");
            executions.spawn(async move { command.output().await });
        }
        let mut failures = Vec::new();
        while let Some(output) = executions.join_next().await {
            match output.map_err(std::io::Error::other)? {
                Ok(output) if output.termination == (Termination::Exited { code: 0 }) => {}
                Ok(output) => failures.push(format!("{:?}", output.termination)),
                Err(error) => failures.push(describe(&error)),
            }
        }
        let took = began.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a table shows three digits")]
        let rate = self.runs as f64 / took;
        println!("\n{} programs asked for at once", self.runs);
        println!("  all over after                  {took:>9.2} s ({rate:.0} each second)");
        println!(
            "  launchers                       {:>9}",
            children(std::process::id()).len()
        );
        println!("  failures                        {:>9}", failures.len());
        for failure in failures.iter().take(3) {
            println!("    {failure}");
        }
        Ok(())
    }

    /// Runs short programs one after the other; a count of everything now and then, as a line of JSON.
    async fn endure(&self) -> sbxrt::Result<()> {
        const COUNTS: usize = 10;
        let limits = Limits {
            wall_time: Some(Duration::from_secs(60)),
            ..Limits::default()
        };
        let sandbox = self.engine.sandbox(&self.image).limits(limits).build()?;
        let mut before = None;
        for run in 1..=self.runs {
            // Each leaves a process and a file behind.
            let script = "sleep 1000 & echo x >/tmp/x; echo x";
            let output = sandbox.command("sh").args(["-c", script]).output().await?;
            if output.termination != (Termination::Exited { code: 0 })
                || output.stdout.bytes != b"x\n"
            {
                return Err(std::io::Error::other(format!("{output:?}")).into());
            }
            if run.is_multiple_of((self.runs / COUNTS).max(1)) {
                let count = match &before {
                    Some(before) => Census::take_settled(before),
                    None => *before.insert(Census::take()),
                };
                let mut count = count.to_json();
                count["runs"] = json!(run);
                println!("{count}");
            }
        }
        Ok(())
    }

    /// How long after their start programs end that have a second, and mean to have more; with the machine loaded.
    async fn timeouts(&self) -> sbxrt::Result<()> {
        const LIMIT: Duration = Duration::from_secs(1);
        let limits = Limits {
            wall_time: Some(LIMIT),
            pids: Some(500),
            ..Limits::default()
        };
        let sandbox = self.engine.sandbox(&self.image).limits(limits).build()?;
        let _load = Load::start();
        println!(
            "{:<22} {:>12} {:>12} {:>10} {:>10}",
            "ends after, in ms", "p50", "longest", "timeouts", "survivors"
        );
        for (name, script) in TREES {
            let (mut ends, mut timeouts, mut survivors) = (Vec::new(), 0, 0);
            for _ in 0..self.runs {
                let mut child = sandbox.command("sh").args(["-c", script]).spawn()?;
                drop((child.stdout.take(), child.stderr.take()));
                let report = child.wait().await?;
                // Of this moment, in which the report says that nothing is left: the launcher, and the load.
                survivors += descendants(std::process::id())
                    .len()
                    .saturating_sub(1 + Load::processes());
                timeouts += usize::from(report.termination == Termination::Timeout);
                ends.push(report.usage.wall_time.as_secs_f64() * 1000.0);
            }
            let (median, longest) = (quantile(&ends, 0.5), quantile(&ends, 1.0));
            println!("{name:<22} {median:>12.1} {longest:>12.1} {timeouts:>10} {survivors:>10}");
        }
        Ok(())
    }
}

/// Programs that mean to stay.
const TREES: &[(&str, &str)] = &[
    (
        "ignores signals",
        "trap '' HUP INT QUIT TERM USR1 USR2 ALRM; while :; do sleep 1000; done",
    ),
    (
        "stops itself",
        "sh -c 'kill -STOP $$' & kill -STOP $$; sleep 1000",
    ),
    (
        "forks twice",
        "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; setsid sleep 1000 & sleep 1000",
    ),
    ("forks all the time", "while :; do (sleep 0.01 &); done"),
];

/// Processes that do nothing, as fast as they can.
struct Load(Vec<Process>);

impl Load {
    fn processes() -> usize {
        2 * std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn start() -> Self {
        let busy = || {
            let mut program = Program::new("sh");
            program
                .args(["-c", "while :; do :; done"])
                .stdin(Stdio::null());
            program.spawn().ok()
        };
        Self((0..Self::processes()).filter_map(|_| busy()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for process in &mut self.0 {
            // It runs until now, and nobody else waits for it.
            drop(process.kill().and_then(|()| process.wait()));
        }
    }
}

/// Seconds of processor time of the launchers, in which the limits are held.
fn processor_time() -> f64 {
    let launchers = children(std::process::id()).into_iter();
    let stats =
        launchers.filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    let stats: Vec<String> = stats.collect();
    let fields: Vec<f64> = stats
        .iter()
        .filter_map(|stat| stat.rsplit_once(") "))
        .flat_map(|(_, rest)| rest.split(' ').skip(11).take(2))
        .filter_map(|field| field.parse().ok())
        .collect();
    // In ticks, of which Linux has a hundred in a second.
    fields.iter().sum::<f64>() / 100.0
}
