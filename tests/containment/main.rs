//! Containment: one file for each attack, named in its first line. What is expected is always the same: the program
//! is refused or sees nothing, the run ends as it would anyway, and no trace is left on the host.
//!
//! A test may meet a sandbox that does not hold, run by root. So no attack does what it shows to be possible: files are
//! opened and not written, system calls get arguments that cannot succeed, signals are number 0, and bombs are bounded.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod abstract_sockets;
mod created_directories;
mod declared_volumes;
mod device_nodes;
mod endless_input;
mod escape_surface;
mod exhausted_quotas;
mod first_process;
mod foreign_annotations;
mod fork_bomb;
mod host_memory;
mod host_signals;
mod hostile_trees;
mod kernel_interfaces;
mod keyrings;
mod leaked_descriptors;
mod long_values;
mod masked_paths;
mod misleading_users;
mod nested_namespaces;
mod network;
mod other_users;
mod outputs;
mod overwritten_runtime;
mod preloaded_libraries;
mod proc_writes;
mod raised_limits;
mod runtime_versions;
mod setuid_files;
mod stress;
mod symlinked_mounts;
mod terminal_input;
mod truth_table;

use sbxrt_tests::{Output, Sbxrt, Witness, for_each_identity};

/// Runs a Python program; what it writes to standard output is the evidence.
fn python(sbxrt: &Sbxrt, rootfs: &str, options: &[&str], program: &str) -> Output {
    let command = [rootfs, "python3", "-I", "-c", program];
    sbxrt.run([options, &command].concat()).output()
}

/// Runs an attack once for each identity. Afterwards nothing may be left, and nothing of the host touched.
fn attack(test: impl Fn(&Sbxrt)) {
    for_each_identity(|sbxrt| {
        let witness = Witness::new(sbxrt);
        test(sbxrt);
        witness.assert_untouched();
    });
}
