//! What a program sees: itself, its image, its scratch, and nothing of the host.

use sbxrt_tests::{Fixtures, for_each_identity, registry};

#[test]
fn an_image_from_a_registry_runs() {
    let Some(registry) = registry() else { return };
    for_each_identity(|sbxrt| {
        let image = format!("{registry}/busybox");
        let output = sbxrt.run([&image, "cat", "/data/keep"]).output();
        assert_eq!(output.success(), "keep\n");
    });
}

#[test]
fn python_from_a_registry_reads_its_program_from_stdin() {
    let Some(registry) = registry() else { return };
    for_each_identity(|sbxrt| {
        let image = format!("{registry}/python");
        let output = sbxrt
            .run(["-i", &image, "python3", "-"])
            .stdin("print(6 * 7)")
            .output();
        assert_eq!(output.success(), "42\n");
    });
}

#[test]
fn the_program_is_root_inside_and_its_caller_outside() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        let output = sbxrt
            .run([&image, "sh", "-c", "id -u; id -g; cat /proc/self/uid_map"])
            .output();
        let lines: Vec<Vec<&str>> = output
            .success()
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["0"], "{output}");
        assert_eq!(lines[1], ["0"], "{output}");
        // INSIDE OUTSIDE COUNT: a namespace of its own, never the host's whole range.
        assert_eq!(lines[2][0], "0", "{output}");
        assert_ne!(lines[2][2], "4294967295", "{output}");
    });
}

#[test]
fn the_root_directory_is_the_images() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let output = sbxrt.run([&fixtures.busybox_rootfs(), "ls", "/"]).output();
        let mut names: Vec<&str> = output.success().lines().collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "usr"
            ],
            "{output}"
        );
    });
}

#[test]
fn tmp_is_writable_even_where_the_image_is_read_only() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let script = "echo x >/tmp/x && cat /tmp/x; echo y >/etc/y || echo refused; echo z >/bin/z || echo refused";
        let output = sbxrt
            .run([
                "--read-only",
                &fixtures.busybox_rootfs(),
                "sh",
                "-c",
                script,
            ])
            .output();
        assert_eq!(output.success(), "x\nrefused\nrefused\n", "{output}");
    });
}

#[test]
fn each_run_starts_from_the_image_alone() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.busybox_rootfs();
        sbxrt
            .run([&image, "sh", "-c", "echo x >/tmp/x"])
            .output()
            .success();
        let output = sbxrt.run([&image, "ls", "-A", "/tmp"]).output();
        assert_eq!(output.success(), "");
    });
}

#[test]
fn loopback_is_the_only_network_interface() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let output = sbxrt
            .run([&fixtures.busybox_rootfs(), "ls", "/sys/class/net"])
            .output();
        let from_sys = (output.code() == 0).then(|| output.text().to_owned());
        let output = sbxrt
            .run([&fixtures.busybox_rootfs(), "cat", "/proc/net/dev"])
            .output();
        let interfaces: Vec<&str> = output
            .success()
            .lines()
            .skip(2)
            .map(|line| line.split(':').next().unwrap().trim())
            .collect();
        assert_eq!(interfaces, ["lo"], "{output}");
        // Where /sys is there at all it must agree.
        assert!(
            from_sys
                .as_deref()
                .is_none_or(|names| names.trim().is_empty() || names == "lo\n"),
            "{from_sys:?}"
        );
    });
}

#[test]
fn the_kernel_confirms_what_was_taken_away() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let output = sbxrt
            .run([&fixtures.busybox_rootfs(), "cat", "/proc/self/status"])
            .output();
        let status = output.success();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.unwrap_or_else(|| panic!("no {name} in {output}"))
                .split_whitespace()
                .nth(1)
                .unwrap()
        };
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:"), "2");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
    });
}

#[test]
fn the_hosts_processes_are_invisible() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let script = "echo $$; for d in /proc/[0-9]*; do cat $d/comm; done";
        let output = sbxrt
            .run([&fixtures.busybox_rootfs(), "sh", "-c", script])
            .output();
        let seen: Vec<&str> = output.success().lines().skip(1).collect();
        // The shell, cat, and at most an init of sbxrt's own.
        assert!(seen.len() <= 3, "{output}");
        assert!(
            !seen
                .iter()
                .any(|name| name.starts_with("e2e") || name.contains("nextest")),
            "{output}"
        );
    });
}

#[test]
fn the_environment_is_the_images_and_what_was_asked_for() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let image = fixtures.layout("busybox", "env");
        let output = sbxrt
            .run(["-e", "EXTRA=given", "-e", "PASSED", &image, "env"])
            .env("PASSED", "on")
            .env("SECRET", "of the caller")
            .output();
        let mut lines: Vec<&str> = output.success().lines().collect();
        lines.retain(|line| {
            !["HOME=", "HOSTNAME=", "PWD=", "SHLVL=", "TERM="]
                .iter()
                .any(|known| line.starts_with(known))
        });
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "EXTRA=given",
                "GREETING=hello",
                "PASSED=on",
                "PATH=/usr/bin:/bin",
                "SPACED=two words"
            ],
            "{output}"
        );
    });
}

#[test]
fn a_volume_appears_and_read_only_means_it() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    for_each_identity(|sbxrt| {
        let directory = sbxrt.scratch("volume");
        std::fs::write(directory.join("in"), "from the host\n").unwrap();
        let writable = format!("{}:/rw", directory.display());
        let read_only = format!("{}:/ro:ro", directory.display());
        let script = "cat /ro/in; echo x >/ro/x || echo refused; echo from inside >/rw/out";
        let image = fixtures.busybox_rootfs();
        let output = sbxrt
            .run([
                "-v", &writable, "-v", &read_only, &image, "sh", "-c", script,
            ])
            .output();
        assert_eq!(output.success(), "from the host\nrefused\n", "{output}");
        assert_eq!(
            std::fs::read_to_string(directory.join("out")).unwrap(),
            "from inside\n"
        );
    });
}

#[test]
fn the_host_image_needs_no_registry() {
    for_each_identity(|sbxrt| {
        let output = sbxrt
            .run(["host:", "sh", "-c", "echo it works; ls /home /root"])
            .output();
        assert!(output.text().starts_with("it works\n"), "{output}");
        assert!(!output.text().contains("sbxrt-test"), "{output}");
    });
}
