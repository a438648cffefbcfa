//! Compiles the default seccomp policy for the target, with the compiler that the crate itself has.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

#[expect(
    dead_code,
    unreachable_pub,
    reason = "in the crate it is public and used"
)]
#[path = "src/seccomp/compile.rs"]
mod compile;
#[expect(
    dead_code,
    unreachable_pub,
    reason = "in the crate it is public and used"
)]
#[path = "src/seccomp/profile.rs"]
mod profile;
#[expect(
    dead_code,
    unreachable_pub,
    reason = "in the crate it is public and used"
)]
#[path = "src/seccomp/program.rs"]
mod program;

fn main() -> Result<(), Box<dyn Error>> {
    let target = env::var("CARGO_CFG_TARGET_ARCH")?;
    let architecture = compile::Architecture::from_rust_name(&target).ok_or_else(|| {
        format!("no seccomp filter for {target}: sbxrt runs on x86_64 and aarch64")
    })?;
    let host = compile::Host {
        architecture,
        capabilities: &[],
        // Programs for any kernel: a test sees to it that the policies do not ask.
        kernel: profile::KernelVersion { major: 0, minor: 0 },
    };
    let directory = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let read = |policy: &str| -> Result<_, Box<dyn Error>> {
        let source = format!("src/seccomp/{policy}.json");
        // Cargo itself watches the sources of this script.
        println!("cargo::rerun-if-changed={source}");
        Ok(profile::Profile::parse(&fs::read(source)?)?)
    };
    let default = read("default")?;
    let emulating = default.clone().with(read("root-emulation")?);
    for (policy, profile) in [
        ("default", default),
        ("fixed-processors", read("fixed-processors")?),
        ("no-memory-files", read("no-memory-files")?),
        (
            "no-memory-files-fixed-processors",
            read("no-memory-files")?.with(read("fixed-processors")?),
        ),
        ("root-emulation", emulating),
    ] {
        let program = compile::compile_for(&profile, &host)?;
        fs::write(directory.join(format!("{policy}.bpf")), program.as_bytes())?;
    }
    Ok(())
}
