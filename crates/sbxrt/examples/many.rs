//! Runs fifty programs at once, each in a sandbox of its own, and sums up how they ended.
//!
//! ```text
//! cargo run -p sbxrt --example many [IMAGE]
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sbxrt::{Engine, Limits, Termination};
use tokio::task::JoinSet;

const EXECUTIONS: u32 = 50;

fn main() -> sbxrt::Result<()> {
    sbxrt::init();
    let image = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "host:".to_owned());
    tokio::runtime::Runtime::new()?.block_on(many(&image))
}

#[expect(clippy::print_stdout, reason = "an example shows what it finds")]
async fn many(image: &str) -> sbxrt::Result<()> {
    let engine = Engine::open_default()?;
    let image = engine.pull(image).await?;
    let sandbox = engine
        .sandbox(&image)
        .limits(Limits {
            wall_time: Some(Duration::from_secs(10)),
            ..Limits::default()
        })
        .build()?;
    let began = Instant::now();
    let mut executions = JoinSet::new();
    for number in 0..EXECUTIONS {
        // Every fifth one fails, so that there is something to tell apart.
        let program = format!("sleep 0.1; test $(({number} % 5)) -ne 0");
        let command = sandbox.command("sh").args(["-c", &program]);
        executions.spawn(async move { command.output().await });
    }
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    while let Some(output) = executions.join_next().await {
        let end = match output.map_err(std::io::Error::other)??.termination {
            Termination::Exited { code } => format!("exited with {code}"),
            other => format!("{other:?}"),
        };
        *ends.entry(end).or_default() += 1;
    }
    println!("{EXECUTIONS} executions in {:?}", began.elapsed());
    for (end, count) in ends {
        println!("{count:4} {end}");
    }
    Ok(())
}
