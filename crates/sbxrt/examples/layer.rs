//! Runs a command in an image, with the host's network and root emulated, and keeps what it changed: what an image
//! builder does for each `RUN`.
//!
//! ```sh
//! mkdir changes
//! cargo run -p sbxrt --example layer -- docker://debian:12 changes sh -c 'apt-get update && apt-get install -y hello'
//! ```

use std::io::Write;
use std::path::Path;

use sbxrt::{Engine, Limits, Network, Termination};

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks to whoever runs it"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    sbxrt::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, upper, command @ ..] = arguments.as_slice() else {
        return Err("usage: layer IMAGE DIRECTORY COMMAND...".into());
    };
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let engine = Engine::open_default()?;
        let image = engine.pull(image).await?;
        let sandbox = engine
            .sandbox(&image)
            .upper(Path::new(upper).canonicalize()?)
            .emulate_root(true)
            .network(Network::Host)
            .limits(Limits {
                memory: Some(2 << 30),
                pids: Some(1024),
                ..Limits::default()
            })
            .build()?;
        let output = sandbox.default_command(command.to_vec())?.output().await?;
        std::io::stdout().write_all(&output.stdout.bytes)?;
        std::io::stderr().write_all(&output.stderr.bytes)?;
        if output.termination == (Termination::Exited { code: 0 }) {
            println!("what changed is in {upper}");
            return Ok(());
        }
        eprintln!("{:?}", output.termination);
        Err("the command failed".into())
    })
}
