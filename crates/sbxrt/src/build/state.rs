//! What a stage has become so far: its layers, its configuration, and the variables in force.

use oci_spec::image::{Config, History, ImageConfiguration};
use sbxrt_image::{AssembledLayer, Digest, Platform};

/// The most bytes of an instruction that the history keeps.
const CREATED_BY: usize = 4096;
const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// When nothing says otherwise.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// A stage in the making.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Bottom first.
    pub(crate) layers: Vec<AssembledLayer>,
    pub(crate) config: ImageConfiguration,
    /// `ARG`s in force, the latest last.
    pub(crate) arguments: Vec<(String, String)>,
    pub(crate) shell: Vec<String>,
    /// Whether this stage has a `CMD` of its own, which `ENTRYPOINT` then leaves alone.
    pub(crate) has_own_cmd: bool,
}

impl State {
    /// `FROM scratch`.
    pub(crate) fn scratch(platform: &Platform) -> Self {
        let mut config = ImageConfiguration::default();
        config
            .set_os(platform.os.as_str().into())
            .set_architecture(platform.architecture.as_str().into())
            .set_variant(platform.variant.clone())
            .set_created(Some(EPOCH.to_owned()));
        let mut state = Self {
            layers: Vec::new(),
            config,
            arguments: Vec::new(),
            shell: DEFAULT_SHELL.map(str::to_owned).to_vec(),
            has_own_cmd: false,
        };
        state.edit(|config| {
            config.set_env(Some(vec![format!("PATH={}", sbxrt_runtime::DEFAULT_PATH)]));
        });
        state
    }

    /// `FROM IMAGE`.
    pub(crate) fn of_image(mut config: ImageConfiguration, layers: Vec<AssembledLayer>) -> Self {
        let history = config.history().clone().unwrap_or_default();
        let told = history
            .iter()
            .filter(|entry| entry.empty_layer() != Some(true))
            .count();
        if told != layers.len() {
            // A history is to have an entry for each layer or not to be there at all, and ours will be.
            let mut entry = History::default();
            entry.set_created(config.created().clone());
            config.set_history(Some(vec![entry; layers.len()]));
        }
        Self {
            layers,
            config,
            arguments: Vec::new(),
            shell: DEFAULT_SHELL.map(str::to_owned).to_vec(),
            has_own_cmd: false,
        }
    }

    /// `FROM STAGE`: another stage goes on from here.
    pub(crate) fn continued(&self) -> Self {
        Self {
            arguments: Vec::new(),
            has_own_cmd: false,
            ..self.clone()
        }
    }

    /// Changes the part of the configuration that says how the image is run.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = self.config.config().clone().unwrap_or_default();
        change(&mut config);
        self.config.set_config(Some(config));
    }

    fn running(&self) -> Config {
        self.config.config().clone().unwrap_or_default()
    }

    /// `ENV` in force, in order.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        let env = self.running().env().clone().unwrap_or_default();
        env.iter()
            .map(|entry| {
                let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
                (name.to_owned(), value.to_owned())
            })
            .collect()
    }

    /// Sets a variable of the environment.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        let mut env = self.running().env().clone().unwrap_or_default();
        let entry = format!("{name}={value}");
        let known = env
            .iter()
            .position(|entry| entry.split('=').next() == Some(name));
        match known {
            Some(index) => env[index] = entry,
            None => env.push(entry),
        }
        self.edit(|config| {
            config.set_env(Some(env));
        });
    }

    /// What a variable is: `ENV` counts over `ARG`.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let of = |pairs: &[(String, String)]| {
            pairs
                .iter()
                .rev()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        };
        of(&self.env()).or_else(|| of(&self.arguments))
    }

    /// The `ARG`s that a program sees: those that no `ENV` hides, the latest of each.
    pub(crate) fn visible_arguments(&self) -> Vec<(String, String)> {
        let env = self.env();
        let mut visible: Vec<(String, String)> = Vec::new();
        for (name, value) in &self.arguments {
            if env.iter().any(|(known, _)| known == name) {
                continue;
            }
            visible.retain(|(known, _)| known != name);
            visible.push((name.clone(), value.clone()));
        }
        visible.sort();
        visible
    }

    /// `WORKDIR` in force.
    pub(crate) fn directory(&self) -> String {
        let directory = self.running().working_dir().clone().unwrap_or_default();
        if directory.is_empty() {
            "/".to_owned()
        } else {
            directory
        }
    }

    /// `USER` in force.
    pub(crate) fn user(&self) -> String {
        self.running().user().clone().unwrap_or_default()
    }

    /// A path of an instruction, absolute. A slash at its end stays.
    pub(crate) fn absolute(&self, path: &str) -> String {
        let joined = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("{}/{path}", self.directory())
        };
        let mut parts: Vec<&str> = Vec::new();
        for part in joined.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        let is_directory = ["/", "/.", "/.."].iter().any(|end| joined.ends_with(end));
        match (parts.is_empty(), is_directory) {
            (true, _) => "/".to_owned(),
            (false, true) => format!("/{}/", parts.join("/")),
            (false, false) => format!("/{}", parts.join("/")),
        }
    }

    /// The chain ID of what is there; none for nothing.
    pub(crate) fn chain_id(&self) -> Option<&Digest> {
        self.layers.last().map(|layer| &layer.chain_id)
    }

    /// Notes an instruction in the history. `created` is when it made its layer.
    pub(crate) fn note(
        &mut self,
        text: &str,
        layer: Option<AssembledLayer>,
        created: Option<&str>,
    ) {
        let created = match created {
            Some(created) => created.to_owned(),
            // An instruction that only says something is as old as what it says it of, so that a build from the cache is
            // the same image.
            None => self
                .config
                .created()
                .clone()
                .unwrap_or_else(|| EPOCH.to_owned()),
        };
        let mut history = self.config.history().clone().unwrap_or_default();
        let mut entry = History::default();
        entry.set_created(Some(created.clone()));
        entry.set_created_by(Some(text.chars().take(CREATED_BY).collect()));
        if layer.is_none() {
            entry.set_empty_layer(Some(true));
        }
        history.push(entry);
        self.config.set_history(Some(history));
        self.config.set_created(Some(created));
        if let Some(layer) = layer {
            let mut diff_ids = self.config.rootfs().diff_ids().clone();
            diff_ids.push(layer.diff_id.to_string());
            self.config.rootfs_mut().set_diff_ids(diff_ids);
            self.layers.push(layer);
        }
    }
}

/// Writes a time as RFC 3339 does. `seconds` are counted from 1970.
pub(crate) fn rfc3339(seconds: i64) -> String {
    // Days to a date: Howard Hinnant's civil_from_days.
    let days = seconds.div_euclid(86_400);
    let rest = seconds.rem_euclid(86_400);
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ];
        for (seconds, expected) in table {
            assert_eq!(rfc3339(seconds), expected);
        }
    }

    #[test]
    fn paths_are_relative_to_the_working_directory() {
        let mut state = State::scratch(&Platform::host());
        state.edit(|config| {
            config.set_working_dir(Some("/app/x".to_owned()));
        });
        let table = [
            ("a", "/app/x/a"),
            ("a/", "/app/x/a/"),
            (".", "/app/x/"),
            ("./", "/app/x/"),
            ("..", "/app/"),
            ("/b//c", "/b/c"),
            ("../../../z", "/z"),
            ("/", "/"),
        ];
        for (path, expected) in table {
            assert_eq!(state.absolute(path), expected, "{path}");
        }
    }

    #[test]
    fn the_environment_counts_over_arguments() {
        let mut state = State::scratch(&Platform::host());
        state.arguments = vec![
            ("A".to_owned(), "1".to_owned()),
            ("B".to_owned(), "1".to_owned()),
            ("B".to_owned(), "2".to_owned()),
        ];
        state.set_env("A", "env");
        state.set_env("A", "env2");
        assert_eq!(state.variable("A").as_deref(), Some("env2"));
        assert_eq!(state.variable("B").as_deref(), Some("2"));
        assert_eq!(state.variable("C"), None);
        assert_eq!(
            state.visible_arguments(),
            [("B".to_owned(), "2".to_owned())]
        );
        assert_eq!(state.env().len(), 2, "PATH and A");
    }
}
