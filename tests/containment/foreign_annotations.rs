//! CVE-2026-53488, CVE-2025-24965 and crun's `run.oci.*` handlers: labels and annotations of an image that change what
//! other runtimes do on the host. To sbxrt they are text.

use sbxrt_tests::Fixtures;
use serde_json::json;

use crate::attack;

#[test]
fn labels_and_annotations_change_nothing() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    attack(|sbxrt| {
        let hooks = sbxrt.scratch("hooks");
        let hook = format!("touch {}/ran", hooks.display());
        let foreign = json!({
            "run.oci.handler": "krun",
            "run.oci.hooks.stdout": hooks.join("ran"),
            "run.oci.hooks.stderr": hooks.join("ran"),
            "run.oci.keep_original_groups": "1",
            "run.oci.mount_context_type": "rootcontext",
            "run.oci.pidfd_receiver": hooks.join("socket"),
            "run.oci.systemd.force_cgroup_v1": "/sys/fs/cgroup/systemd",
            "run.oci.delegate-cgroup": "/",
            "krun.cpus": "64",
            "module.wasm.image/variant": "compat-smart",
            "io.containerd.runc.v2.group": "/",
            "io.kubernetes.cri-o.userns-mode": "host",
            "io.kubernetes.cri-o.Devices": "/dev/kmsg",
            "io.kubernetes.cri-o.TrustedSandbox": "true",
            "io.katacontainers.config.hypervisor.path": hook,
            "org.systemd.property.ExecStart": hook,
            "cdi.k8s.io/all": "vendor.com/device=all",
            "org.opencontainers.runc.systemd": "true",
            "com.docker.oci.hooks.prestart": hook,
            "sbxrt.user": "0:0",
            "sbxrt.network": "host"
        });
        let hostile = fixtures.variant(sbxrt, "annotated", |configuration, manifest| {
            configuration["config"]["Labels"] = foreign.clone();
            manifest["annotations"] = foreign.clone();
            manifest["config"]["annotations"] = foreign.clone();
            configuration["hooks"] =
                json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]});
        });
        // All that a runtime could have done differently, as far as the program can see.
        let script = "id; ls /dev /proc/sys; cat /proc/mounts /proc/net/dev /proc/self/limits; env | sort; \
                      grep -E 'Cap|Seccomp|NoNew|allowed' /proc/self/status";
        let run = |image: &str| {
            let words = ["--hostname", "same", image, "sh", "-c", script];
            let output = sbxrt.run(words).output();
            // The directories of layers have the image's own names.
            let lines = output
                .success()
                .lines()
                .filter(|line| !line.starts_with("overlay "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(run(&hostile), run(&fixtures.layout("busybox", "latest")));
        assert_eq!(
            hooks.read_dir().unwrap().count(),
            0,
            "a hook ran on the host"
        );
    });
}
