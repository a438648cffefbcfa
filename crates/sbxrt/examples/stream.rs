//! Shows a program's output while it arrives, and ends the program when it has said enough.
//!
//! ```text
//! cargo run -p sbxrt --example stream [IMAGE]
//! ```

use std::time::Instant;

use sbxrt::Engine;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const PROGRAM: &str = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done";

fn main() -> sbxrt::Result<()> {
    sbxrt::init();
    let image = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "host:".to_owned());
    tokio::runtime::Runtime::new()?.block_on(stream(&image))
}

#[expect(clippy::print_stdout, reason = "an example shows what it finds")]
async fn stream(image: &str) -> sbxrt::Result<()> {
    let engine = Engine::open_default()?;
    let image = engine.pull(image).await?;
    let sandbox = engine.sandbox(&image).build()?;
    let began = Instant::now();
    let mut child = sandbox.command("sh").args(["-c", PROGRAM]).spawn()?;
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await? {
            println!("after {:4} ms: {line}", began.elapsed().as_millis());
            if line == "line 5" {
                child.cancel()?;
            }
        }
    }
    let report = child.wait().await?;
    println!(
        "{:?} after {:?}",
        report.termination, report.usage.wall_time
    );
    Ok(())
}
