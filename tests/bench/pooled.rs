//! `sbxrt-bench pool`: containers that stand ready beside ones that are made when they are wanted.

use std::time::{Duration, Instant};

use sbxrt::{Engine, Image, Limits, Sandbox};
use serde_json::json;

use crate::quantile;

/// So many stand ready.
const SIZE: usize = 4;

/// What a program finds and leaves: whatever it could see of an execution before it, it would print.
const SCRIPT: &str = r#"
echo "$0 $1 $ASSIGNED $(cat)"
hostname
ls /tmp /dev/shm; ps | wc -l
cat /sys/fs/cgroup/memory.peak 2>/dev/null | wc -c
echo left >/tmp/left; echo left >/left; echo left >/dev/shm/left; cat /left
"#;

/// Prints what each of some executions in a pool finds, a line of JSON each, and then how long they take: from the command
/// to its output, with time between them to make new containers.
pub(crate) async fn run(engine: &Engine, image: &Image, runs: usize) -> sbxrt::Result<()> {
    let pooled = engine.sandbox(image).pool(SIZE).build()?;
    let cold = engine.sandbox(image).build()?;
    for number in 0..2 * SIZE {
        let output = pooled
            .command("sh")
            .args(["-c", SCRIPT, "name", &number.to_string()])
            .env("ASSIGNED", format!("value-{number}"))
            .stdin(format!("input-{number}"))
            .output_path("/left")
            .output()
            .await?;
        let line = json!({
            "termination": format!("{:?}", output.termination),
            "stdout": String::from_utf8_lossy(&output.stdout.bytes),
            "stderr": String::from_utf8_lossy(&output.stderr.bytes),
            "files": output.files.len(),
        });
        println!("{line}");
    }
    // No limit on time counts while a container waits.
    let limits = Limits {
        wall_time: Some(Duration::from_secs(1)),
        ..Limits::default()
    };
    let hasty = engine.sandbox(image).limits(limits).pool(1).build()?;
    hasty.warm_up()?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for seconds in ["0.3", "100"] {
        let output = hasty.command("sleep").arg(seconds).output().await?;
        let end = format!("{:?}", output.termination);
        println!("{}", json!({"slept": seconds, "termination": end}));
    }
    let mut times: [Vec<f64>; 2] = Default::default();
    for _ in 0..runs {
        for (sandbox, times) in [&cold, &pooled].into_iter().zip(&mut times) {
            sandbox.warm_up()?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            times.push(time(sandbox).await?);
        }
    }
    for (name, times) in ["cold", "pooled"].into_iter().zip(&times) {
        eprintln!(
            "{name:<8} p50 {:>7.2} ms   p95 {:>7.2} ms   p99 {:>7.2} ms",
            quantile(times, 0.5),
            quantile(times, 0.95),
            quantile(times, 0.99)
        );
    }
    Ok(())
}

/// How long `true` takes, in milliseconds.
async fn time(sandbox: &Sandbox) -> sbxrt::Result<f64> {
    let began = Instant::now();
    sandbox.command("true").output().await?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}
