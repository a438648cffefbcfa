//! Private registries: logins, certificates and the site's settings, against a real registry that insists.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use sbxrt_tests::{Fixtures, Need, Sbxrt, for_each_identity, require};
use tempfile::TempDir;

const PASSWORD: &str = "correct horse";

/// Debian's docker-registry, which lets in nobody but `me`, and has `busybox`.
struct Private {
    registry: Child,
    directory: TempDir,
    port: u16,
}

impl Drop for Private {
    fn drop(&mut self) {
        self.registry.kill().unwrap();
        self.registry.wait().unwrap();
    }
}

impl Private {
    /// Starts it; `None` where the test should return.
    fn start(with_tls: bool) -> Option<Self> {
        let fixtures = Fixtures::find()?;
        if !require(Need::Registry) {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // The users of the tests read the authority's certificate.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        let hash = succeed(Command::new("perl").args([
            "-e",
            "print crypt($ARGV[0], '$2y$04$abcdefghijklmnopqrstuu')",
            PASSWORD,
        ]));
        fs::write(path.join("htpasswd"), format!("me:{hash}\n")).unwrap();
        let mut tls = String::new();
        if with_tls {
            certify(path);
            let shown = path.display();
            tls = format!(", tls: {{certificate: {shown}/server.crt, key: {shown}/server.key}}");
        }
        let config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {0}/storage}}}}\n\
             auth: {{htpasswd: {{realm: test, path: {0}/htpasswd}}}}\n\
             http: {{addr: \"127.0.0.1:0\"{tls}}}\n",
            path.display()
        );
        fs::write(path.join("config.yml"), config).unwrap();
        let mut registry = Command::new("docker-registry")
            .arg("serve")
            .arg(path.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(registry.stderr.take().unwrap()).lines();
        let port = log
            .by_ref()
            .find_map(|line| {
                let line = line.unwrap();
                let after = line.split("listening on 127.0.0.1:").nth(1)?;
                let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().ok()
            })
            .expect("docker-registry says where it listens");
        // It goes on talking.
        std::thread::spawn(move || log.for_each(drop));
        let private = Self {
            registry,
            directory,
            port,
        };
        succeed(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--dest-tls-verify=false"])
                .args(["--dest-creds", &format!("me:{PASSWORD}")])
                .arg(fixtures.layout("busybox", "latest"))
                .arg(format!("docker://{}/busybox", private.host())),
        );
        Some(private)
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The same registry by an address of this machine that is no loopback address.
    fn other_host(&self) -> String {
        format!("0.0.0.0:{}", self.port)
    }

    fn authority(&self) -> String {
        fs::read_to_string(self.directory.path().join("ca.crt")).unwrap()
    }
}

/// Makes an authority and a certificate by it.
fn certify(directory: &Path) {
    let openssl = |arguments: &[&str]| {
        succeed(
            Command::new("openssl")
                .args(arguments)
                .current_dir(directory),
        );
    };
    let new_key = ["-newkey", "rsa:2048", "-nodes", "-days", "2"];
    openssl(
        &[
            &["req", "-x509", "-subj", "/CN=test authority"],
            &new_key[..],
            &["-keyout", "ca.key", "-out", "ca.crt"],
        ]
        .concat(),
    );
    openssl(
        &[
            &["req", "-x509", "-subj", "/CN=registry"],
            &new_key[..],
            &["-CA", "ca.crt", "-CAkey", "ca.key"],
            &["-addext", "basicConstraints=critical,CA:FALSE"],
            &["-addext", "subjectAltName=IP:127.0.0.1,IP:0.0.0.0"],
            &["-keyout", "server.key", "-out", "server.crt"],
        ]
        .concat(),
    );
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a file below the home of the user, for the user to read.
fn write(sbxrt: &Sbxrt, path: &str, text: &str, mode: u32) {
    let path = sbxrt.home().join(path);
    let mut made = Vec::new();
    for directory in path.ancestors().skip(1) {
        if directory.exists() {
            break;
        }
        made.push(directory.to_owned());
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let (uid, gid) = (sbxrt.identity().uid(), sbxrt.identity().gid());
    for path in made.iter().chain([&path]) {
        std::os::unix::fs::chown(path, Some(uid.as_raw()), Some(gid.as_raw())).unwrap();
    }
}

fn login<'a>(sbxrt: &'a Sbxrt, host: &str, password: &str) -> sbxrt_tests::Invocation<'a> {
    sbxrt
        .command(["login", "--username", "me", "--password-stdin", host])
        .stdin(format!("{password}\n"))
}

#[test]
fn a_login_is_verified_kept_used_and_forgotten() {
    let Some(registry) = Private::start(false) else {
        return;
    };
    let host = registry.host();
    let image = format!("{host}/busybox");
    for_each_identity(|sbxrt| {
        let kept = sbxrt.home().join(".config/containers/auth.json");
        let refused = sbxrt.command(["pull", &image]).output();
        assert_eq!(refused.code(), 1, "{refused}");
        let hint = format!("sbxrt login {host}");
        assert!(refused.stderr.contains(&hint), "{refused}");

        let wrong = login(sbxrt, &host, "wrong").output();
        assert_eq!(wrong.code(), 1, "{wrong}");
        assert!(
            wrong.stderr.contains("does not accept the credentials"),
            "{wrong}"
        );
        assert!(!kept.exists(), "a wrong password was kept");

        let right = login(sbxrt, &host, PASSWORD).output();
        right.success();
        assert!(
            right.stderr.contains("logged in") && !right.stderr.contains(PASSWORD),
            "{right}"
        );
        let mode = fs::metadata(&kept).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600);
        let ran = sbxrt.run([&image, "cat", "/data/keep"]).output();
        assert_eq!(ran.success(), "keep\n");

        sbxrt.command(["logout", &host]).output().success();
        let refused = sbxrt.command(["pull", &image]).output();
        assert_eq!(refused.code(), 1, "{refused}");
        let again = sbxrt.command(["logout", &host]).output();
        assert_eq!(again.code(), 1, "{again}");
        assert!(again.stderr.contains("not logged in"), "{again}");
    });
}

#[test]
fn a_password_is_typed_at_a_terminal_or_comes_through_a_pipe() {
    let Some(registry) = Private::start(false) else {
        return;
    };
    let host = registry.host();
    for_each_identity(|sbxrt| {
        let neither = sbxrt.command(["login", "--username", "me", &host]).output();
        assert_eq!(neither.code(), 1, "{neither}");
        assert!(neither.stderr.contains("--password-stdin"), "{neither}");

        let binary = sbxrt.binary().display();
        let typed = sbxrt
            .command(["--version"])
            .called_by([
                "sh",
                "-c",
                "printf 'me\\ncorrect horse\\n' | script -qec \"$COMMAND\" /dev/null",
            ])
            .env("COMMAND", format!("{binary} login {host}"))
            .output();
        let said = typed.success();
        assert!(
            said.contains("user name for") && said.contains("logged in"),
            "{typed}"
        );
    });
}

#[test]
fn docker_s_file_and_its_helpers_count() {
    let Some(registry) = Private::start(false) else {
        return;
    };
    let host = registry.host();
    let image = format!("{host}/busybox");
    for_each_identity(|sbxrt| {
        let helper = "#!/bin/sh\n[ \"$1\" = get ] && read server && \
                      echo \"{\\\"ServerURL\\\":\\\"$server\\\",\\\"Username\\\":\\\"me\\\",\\\"Secret\\\":\\\"correct horse\\\"}\"\n";
        write(sbxrt, "bin/docker-credential-test", helper, 0o755);
        let path = format!("{}/bin:/usr/bin:/bin", sbxrt.home().display());
        let pull = || sbxrt.command(["pull", &image]).env("PATH", &path).output();
        let config = ".docker/config.json";

        let named = format!("{{\"credHelpers\": {{\"{host}\": \"test\"}}}}");
        write(sbxrt, config, &named, 0o600);
        pull().success();

        write(sbxrt, config, &named.replace("test", "none"), 0o600);
        let failed = pull();
        assert_eq!(failed.code(), 1, "{failed}");
        assert!(failed.stderr.contains("docker-credential-none"), "{failed}");

        write(sbxrt, config, "{\"auths\": ", 0o600);
        let broken = pull();
        assert_eq!(broken.code(), 1, "{broken}");
        assert!(broken.stderr.contains(config), "{broken}");
    });
}

#[test]
fn a_registry_with_an_authority_of_its_own_is_believed_where_somebody_says_so() {
    let Some(registry) = Private::start(true) else {
        return;
    };
    for_each_identity(|sbxrt| {
        for (host, expected) in [
            (registry.host(), "wants to be spoken to with TLS"),
            (registry.other_host(), "UnknownIssuer"),
        ] {
            let image = format!("{host}/busybox");
            let certificate = format!(".config/containers/certs.d/{host}/ca.crt");
            let unknown = sbxrt.command(["pull", &image]).output();
            assert_eq!(unknown.code(), 1, "{unknown}");
            assert!(
                unknown.stderr.contains(expected) && unknown.stderr.contains(&certificate),
                "{unknown}"
            );
            write(sbxrt, &certificate, &registry.authority(), 0o644);
            login(sbxrt, &host, PASSWORD).output().success();
            let ran = sbxrt.run([&image, "cat", "/data/keep"]).output();
            assert_eq!(ran.success(), "keep\n");
        }
    });
}

#[test]
fn a_site_says_where_its_registries_are() {
    let Some(registry) = Private::start(false) else {
        return;
    };
    let host = registry.host();
    for_each_identity(|sbxrt| {
        login(sbxrt, &host, PASSWORD).output().success();
        let settings = format!(
            "surprise = 1\n\
             [[registry]]\nprefix = \"registry.invalid\"\n\
             [[registry.mirror]]\nlocation = \"{host}\"\n\
             [[registry]]\nprefix = \"blocked.invalid\"\nblocked = true\n"
        );
        write(sbxrt, "site.conf", &settings, 0o644);
        let path = sbxrt.home().join("site.conf");
        let pulled = sbxrt
            .command(["pull", "registry.invalid/busybox"])
            .env("CONTAINERS_REGISTRIES_CONF", &path)
            .output();
        pulled.success();
        assert!(pulled.stderr.contains("surprise"), "{pulled}");
        let listed = sbxrt.command(["images"]).output();
        assert!(
            listed.success().contains("registry.invalid/busybox"),
            "{listed}"
        );
        let blocked = sbxrt
            .command(["pull", "blocked.invalid/busybox"])
            .env("CONTAINERS_REGISTRIES_CONF", &path)
            .output();
        assert_eq!(blocked.code(), 1, "{blocked}");
        assert!(blocked.stderr.contains("site.conf"), "{blocked}");
    });
}
