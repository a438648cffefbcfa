//! Whether limits can be held by a cgroup, and if not, what is in the way.

use std::collections::BTreeMap;
use std::path::Path;

use nix::errno::Errno;

use super::advice::{Advice, Container};
use super::{Check, Status};
use crate::cgroup::{self, Controller, Delegation, Obstacle, Subtree};
use crate::request::{LimitName, Limits, Mechanism, Requirement};

const NAME: &str = "cgroup";
const INSTEAD: &str = "sbxrt watches the limits itself instead";
/// What to type where systemd can make a scope. For many runs the second is better: the first asks each time.
const ASK_SYSTEMD: &str =
    "sbxrt run --require memory=cgroup … # or: systemd-run --user --scope -p Delegate=yes sbxrt …";
/// What the advice about cgroups depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Surroundings {
    /// Whether systemd runs the machine.
    has_systemd: bool,
    /// Whether a service manager of systemd's answers this user, which can be asked for a scope.
    has_user_manager: bool,
    /// Whether this is a job of SLURM's.
    is_slurm_job: bool,
    container: Option<Container>,
    user: String,
}

impl Surroundings {
    fn read(container: Option<Container>) -> Self {
        let uid = nix::unistd::geteuid();
        Self {
            has_systemd: Path::new("/run/systemd/system").is_dir(),
            has_user_manager: cgroup::systemd_answers(),
            is_slurm_job: cgroup::is_slurm_job(),
            container,
            user: nix::unistd::User::from_uid(uid)
                .ok()
                .flatten()
                .map_or_else(|| uid.to_string(), |user| user.name),
        }
    }
}

/// What would hold each limit, and why not a cgroup where it does not.
pub(super) fn check(container: Option<Container>) -> (Check, BTreeMap<LimitName, Mechanism>) {
    let found = Subtree::examine();
    let is_root = nix::unistd::geteuid().is_root();
    let limits = LimitName::ALL
        .iter()
        .map(|&limit| match &found {
            Ok(delegation) if delegation.holds(limit) => (limit, delegation.mechanism),
            _ => (
                limit,
                cgroup::mechanism_without_cgroup(limit, &Limits::default(), is_root),
            ),
        })
        .collect();
    (judge(&found, &Surroundings::read(container)), limits)
}

/// Corrects the cgroup check where a run has not used what it promised.
pub(super) fn correct(
    check: &mut Check,
    container: Option<Container>,
    limits: &BTreeMap<LimitName, Mechanism>,
) {
    let unused: Vec<&str> = [
        ("memory", LimitName::Memory),
        ("cpu", LimitName::Cpus),
        ("pids", LimitName::Pids),
    ]
    .into_iter()
    .filter(|(_, limit)| {
        !limits
            .get(limit)
            .is_some_and(|&mechanism| Requirement::Cgroup.is_met_by(mechanism))
    })
    .map(|(controller, _)| controller)
    .collect();
    if check.status != Status::Ok || unused.is_empty() {
        return;
    }
    *check = match Subtree::acquire() {
        Err(obstacle) => judge(&Err(obstacle), &Surroundings::read(container)),
        Ok(_) => Check::not_ok(
            NAME,
            Status::Degraded,
            format!(
                "{}; but a run did not use {}",
                check.detail,
                unused.join(", ")
            ),
            Advice::without_fix(INSTEAD),
        ),
    };
}

fn judge(found: &Result<Delegation, Obstacle>, around: &Surroundings) -> Check {
    let degraded = |detail: String, advice| Check::not_ok(NAME, Status::Degraded, detail, advice);
    let errno = |number: &i32| {
        let errno = Errno::from_raw(*number);
        format!("{errno:?}: {}", errno.desc())
    };
    match found {
        Ok(Delegation {
            mechanism,
            path,
            controllers,
        }) => {
            let lacking = Controller::MAIN
                .into_iter()
                .filter(|controller| !controllers.contains(controller));
            let lacking = list(lacking);
            let found = list(controllers.iter().copied());
            let detail = match mechanism {
                Mechanism::Cgroup1 => format!(
                    "version 1, {} and its like belong to {}: {found}",
                    path.display(),
                    around.user
                ),
                _ => format!("version 2, {} is delegated: {found}", path.display()),
            };
            if lacking.is_empty() {
                return Check::ok(NAME, detail);
            }
            let reason = format!("{lacking}: not among them; {INSTEAD}");
            let advice = match mechanism {
                Mechanism::Cgroup1 if around.is_slurm_job => Advice::without_fix(format!(
                    "{reason}; these are the ones that this SLURM hands to the user"
                )),
                Mechanism::Cgroup1 => unified(reason),
                _ => offering(reason, path, around),
            };
            degraded(detail, advice)
        }
        Err(Obstacle::NotMounted) => degraded(
            "version 2 is not mounted on /sys/fs/cgroup".to_owned(),
            match (around.container, around.has_systemd) {
                (Some(_), _) => Advice::without_fix(format!(
                    "the container around this process does not show it; {INSTEAD}"
                )),
                (None, true) => unified(format!("this host has version 1 alone; {INSTEAD}")),
                (None, false) => Advice::new(
                    format!("nobody has mounted it; {INSTEAD}"),
                    "sudo mount -t cgroup2 none /sys/fs/cgroup",
                ),
            },
        ),
        Err(Obstacle::Unreachable {
            path,
            errno: number,
        }) => degraded(
            format!("open(\"{}\"): {}", path.display(), errno(number)),
            Advice::without_fix(format!(
                "this process's own cgroup lies outside of what /sys/fs/cgroup shows here; {INSTEAD}"
            )),
        ),
        Err(Obstacle::NothingOffered { path }) => degraded(
            format!(
                "version 2, but {} is offered no controllers",
                path.display()
            ),
            offering(
                format!("the cgroup above it gives none to its children; {INSTEAD}"),
                path,
                around,
            ),
        ),
        Err(Obstacle::NotWritable {
            path,
            file,
            errno: number,
        }) => {
            let file = if *file == "." {
                path.clone()
            } else {
                path.join(file)
            };
            degraded(
                format!(
                    "version 2, not delegated: {} is not writable: {}",
                    file.display(),
                    errno(number)
                ),
                delegating(*number, path, around),
            )
        }
        Err(Obstacle::NotEnabled {
            path,
            errno: number,
        }) => degraded(
            format!(
                "version 2, {} is delegated, but its controllers cannot be given to children: {}",
                path.display(),
                errno(number)
            ),
            crowded(around),
        ),
        Err(Obstacle::Version1 {
            path,
            controllers,
            errno: number,
        }) => {
            let reason = format!(
                "{} are on version 1 hierarchies, which are not delegated to users; {INSTEAD}",
                list(controllers.iter().copied())
            );
            degraded(
                format!(
                    "version 1, {} is not writable: {}",
                    path.display(),
                    errno(number)
                ),
                match around.container {
                    _ if around.is_slurm_job => slurm(&reason),
                    Some(_) => Advice::without_fix(reason),
                    None => unified(reason),
                },
            )
        }
    }
}

fn list(controllers: impl Iterator<Item = Controller>) -> String {
    let names: Vec<&str> = controllers.map(Controller::as_str).collect();
    names.join(", ")
}

/// How to get rid of version 1.
fn unified(reason: String) -> Advice {
    Advice::new(
        reason,
        "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line (RHEL: sudo grubby --update-kernel=ALL --args=systemd.unified_cgroup_hierarchy=1) and reboot",
    )
}

/// How a cgroup comes to be offered controllers.
fn offering(reason: String, path: &Path, around: &Surroundings) -> Advice {
    if around.is_slurm_job {
        return slurm(&reason);
    }
    if around.has_systemd {
        return Advice::new(
            reason,
            "sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf && sudo systemctl daemon-reload # then log in again, and: systemd-run --user --scope -p Delegate=yes sbxrt …",
        );
    }
    match path.parent() {
        Some(parent) if around.container.is_none() => Advice::new(
            reason,
            format!(
                "echo '+cpu +memory +pids' | sudo tee {}",
                parent.join("cgroup.subtree_control").display()
            ),
        ),
        _ => Advice::without_fix(reason),
    }
}

/// How a cgroup comes to be its user's.
fn delegating(errno: i32, path: &Path, around: &Surroundings) -> Advice {
    let reason = format!(
        "the cgroup that this process is in does not belong to {}; {INSTEAD}",
        around.user
    );
    match around.container {
        Some(Container::Podman) if errno == libc::EROFS => Advice::new(
            format!("the container shows cgroups read-only; {INSTEAD}"),
            "podman run --cgroupns=private --security-opt unmask=/sys/fs/cgroup …",
        ),
        Some(_) if errno == libc::EROFS => Advice::without_fix(format!(
            "the container shows cgroups read-only; {INSTEAD}; start it with a writable /sys/fs/cgroup of its own"
        )),
        _ if around.is_slurm_job => slurm(&reason),
        _ if around.has_user_manager => Advice::new(reason, ASK_SYSTEMD),
        _ if around.has_systemd => Advice::new(
            reason,
            format!(
                "sudo loginctl enable-linger {} # or log in, and then: {ASK_SYSTEMD}",
                around.user
            ),
        ),
        _ => {
            let path = path.display();
            Advice::new(
                reason,
                format!(
                    "sudo chown {} {path} {path}/cgroup.procs {path}/cgroup.subtree_control {path}/cgroup.threads",
                    around.user
                ),
            )
        }
    }
}

/// What to do about processes that this user cannot move out of the way.
fn crowded(around: &Surroundings) -> Advice {
    let reason = format!(
        "a cgroup with processes has no controllers for its children, and not all processes in it can be moved; {INSTEAD}"
    );
    if around.has_user_manager {
        Advice::new(reason, ASK_SYSTEMD)
    } else {
        Advice::without_fix(format!("{reason}; start sbxrt in a cgroup of its own"))
    }
}

fn slurm(reason: &str) -> Advice {
    Advice::without_fix(format!(
        "{reason}; SLURM holds the job's own limits and does not delegate its cgroup to the user"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_obstacle_has_its_advice() {
        let path = || "/sys/fs/cgroup/session".into();
        let plain = || Surroundings {
            user: "ann".to_owned(),
            ..Surroundings::default()
        };
        let systemd = || Surroundings {
            has_systemd: true,
            ..plain()
        };
        let desktop = || Surroundings {
            has_user_manager: true,
            ..systemd()
        };
        let not_writable = |errno| {
            Err(Obstacle::NotWritable {
                path: path(),
                file: "cgroup.procs",
                errno,
            })
        };
        let delegation = |controllers: &[Controller]| {
            Ok(Delegation {
                mechanism: Mechanism::Cgroup2,
                path: path(),
                controllers: controllers.iter().copied().collect(),
            })
        };
        let version_1 = |controllers: &[Controller]| {
            Ok(Delegation {
                mechanism: Mechanism::Cgroup1,
                path: "/sys/fs/cgroup/memory/job".into(),
                controllers: controllers.iter().copied().collect(),
            })
        };
        let not_owned = || {
            Err(Obstacle::Version1 {
                path: "/sys/fs/cgroup/memory/job".into(),
                controllers: vec![Controller::Memory, Controller::Pids],
                errno: libc::EACCES,
            })
        };
        let job = || Surroundings {
            is_slurm_job: true,
            ..desktop()
        };
        let table = [
            ("all of them", delegation(&Controller::MAIN), plain()),
            (
                "systemd's default",
                delegation(&[Controller::Memory, Controller::Pids]),
                desktop(),
            ),
            ("not delegated, bare", not_writable(libc::EACCES), plain()),
            (
                "not delegated, systemd",
                not_writable(libc::EACCES),
                systemd(),
            ),
            (
                "not delegated, logged in",
                not_writable(libc::EACCES),
                desktop(),
            ),
            ("not delegated, SLURM", not_writable(libc::EACCES), job()),
            (
                "podman",
                not_writable(libc::EROFS),
                Surroundings {
                    container: Some(Container::Podman),
                    ..plain()
                },
            ),
            (
                "docker",
                not_writable(libc::EROFS),
                Surroundings {
                    container: Some(Container::Docker),
                    ..plain()
                },
            ),
            ("no version 2", Err(Obstacle::NotMounted), systemd()),
            ("no cgroups", Err(Obstacle::NotMounted), plain()),
            ("version 1, root", version_1(&Controller::MAIN), plain()),
            (
                "version 1, SLURM up to 22.05",
                version_1(&[Controller::Cpuacct, Controller::Memory]),
                job(),
            ),
            ("version 1, not owned", not_owned(), systemd()),
            ("version 1, not owned, SLURM", not_owned(), job()),
            (
                "nothing offered",
                Err(Obstacle::NothingOffered { path: path() }),
                plain(),
            ),
            (
                "another namespace",
                Err(Obstacle::Unreachable {
                    path: path(),
                    errno: libc::ENOENT,
                }),
                plain(),
            ),
            (
                "somebody else's process",
                Err(Obstacle::NotEnabled {
                    path: path(),
                    errno: libc::EBUSY,
                }),
                plain(),
            ),
        ];
        let text: Vec<String> = table
            .iter()
            .map(|(case, found, around)| {
                let Check {
                    status,
                    detail,
                    reason,
                    fix,
                    ..
                } = judge(found, around);
                let (reason, fix) = (reason.unwrap_or_default(), fix.unwrap_or_default());
                format!("{case}\n  {status:?}: {detail}\n  {reason}\n  fix: {fix}\n")
            })
            .collect();
        insta::assert_snapshot!(text.join("\n"));
    }
}
