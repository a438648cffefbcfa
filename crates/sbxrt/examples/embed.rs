//! Runs a program that nobody trusts yet and looks at what became of it.
//!
//! ```text
//! cargo run -p sbxrt --example embed [IMAGE]
//! ```

use std::time::Duration;

use sbxrt::{Engine, Limits, Termination};

const PROGRAM: &str = "a, b = map(int, input().split()); print(a + b)";

fn main() -> sbxrt::Result<()> {
    sbxrt::init(); // first line, before any thread: a re-executed copy becomes the launcher here
    let image = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "host:".to_owned());
    tokio::runtime::Runtime::new()?.block_on(embed(&image))
}

#[expect(clippy::print_stdout, reason = "an example shows what it finds")]
async fn embed(image: &str) -> sbxrt::Result<()> {
    let engine = Engine::open_default()?;
    let image = engine.pull(image).await?; // now a digest, except for host: and dir:
    let sandbox = engine
        .sandbox(&image)
        .limits(Limits {
            memory: Some(256 << 20),
            wall_time: Some(Duration::from_secs(5)),
            ..Limits::default()
        })
        .build()?; // no network unless asked for
    let output = sandbox
        .command("python3")
        .args(["-c", PROGRAM])
        .stdin("3 4\n")
        .output()
        .await?;
    match output.termination {
        Termination::Exited { code: 0 } => {
            print!("{}", String::from_utf8_lossy(&output.stdout.bytes));
        }
        other => println!(
            "{other:?}: {}",
            String::from_utf8_lossy(&output.stderr.bytes)
        ),
    }
    println!(
        "took {:?}, peak {} KiB",
        output.usage.wall_time,
        output.usage.memory_peak >> 10
    );
    for (limit, mechanism) in &output.enforcement {
        println!("{limit} was held by {mechanism}");
    }
    Ok(())
}
