//! From instructions to stages: which there are, what each is built on, and which of them are needed.

use std::collections::BTreeMap;

use super::dockerfile::{Dockerfile, DockerfileError, Instruction, InstructionKind};
use super::expand::expand;

/// What `FROM` and `COPY --from` name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nothing: `FROM scratch`.
    Scratch,
    /// An earlier stage, by its index.
    Stage(usize),
    /// An image, as it is written.
    Image(String),
}

/// A stage of a Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    /// Its name, else its number.
    pub(crate) name: String,
    pub(crate) base: Origin,
    /// Its `FROM`.
    pub(crate) from: Instruction,
    pub(crate) instructions: Vec<Instruction>,
    /// What its `COPY --from` name, in order of the instructions.
    pub(crate) copies: BTreeMap<usize, Origin>,
}

/// A Dockerfile as stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) stages: Vec<Stage>,
    /// The one that is asked for.
    pub(crate) target: usize,
    /// Whether each is needed for that.
    pub(crate) needed: Vec<bool>,
    /// The arguments before the first `FROM`, with their values.
    pub(crate) globals: Vec<(String, Option<String>)>,
}

/// What a build is asked for that matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes<'a> {
    /// `--build-arg`
    pub(crate) arguments: &'a [(String, String)],
    /// `--target`
    pub(crate) target: Option<&'a str>,
    /// `linux/amd64`: what is built for, and on.
    pub(crate) platform: &'a sbxrt_image::Platform,
}

/// The arguments that every `FROM` knows and a stage gets by `ARG NAME`.
pub(crate) fn platform_arguments(platform: &sbxrt_image::Platform) -> Vec<(String, String)> {
    let variant = platform.variant.clone().unwrap_or_default();
    let mut arguments = Vec::new();
    for side in ["TARGET", "BUILD"] {
        arguments.extend([
            (format!("{side}PLATFORM"), platform.to_string()),
            (format!("{side}OS"), platform.os.clone()),
            (format!("{side}ARCH"), platform.architecture.clone()),
            (format!("{side}VARIANT"), variant.clone()),
        ]);
    }
    arguments
}

/// Makes a plan.
pub(crate) fn plan(dockerfile: &Dockerfile, wishes: Wishes<'_>) -> Result<Plan, DockerfileError> {
    let mut globals: Vec<(String, Option<String>)> = Vec::new();
    let mut stages: Vec<Stage> = Vec::new();
    for instruction in &dockerfile.instructions {
        let value = |globals: &[(String, Option<String>)], word: &str| {
            let automatic = platform_arguments(wishes.platform);
            let lookup = |name: &str| {
                let declared = globals.iter().rev().find(|(known, _)| known == name);
                match declared {
                    Some((_, value)) => value.clone(),
                    None => automatic
                        .iter()
                        .find(|(known, _)| known == name)
                        .map(|(_, value)| value.clone()),
                }
            };
            expand(word, dockerfile.escape, &lookup)
                .map_err(|reason| DockerfileError::new(instruction.line, &instruction.text, reason))
        };
        match &instruction.kind {
            InstructionKind::From {
                image,
                name,
                platform,
            } => {
                let image = value(&globals, image)?;
                if image.is_empty() {
                    return Err(DockerfileError::new(
                        instruction.line,
                        &instruction.text,
                        "the name of the image is empty",
                    )
                    .with_hint(
                        "an ARG that is used here must come before the first FROM and have a value",
                    ));
                }
                if let Some(platform) = platform {
                    check_platform(instruction, &value(&globals, platform)?, wishes.platform)?;
                }
                if name
                    .as_ref()
                    .is_some_and(|name| stages.iter().any(|stage| stage.name == *name))
                {
                    return Err(DockerfileError::new(
                        instruction.line,
                        &instruction.text,
                        "another stage has this name",
                    ));
                }
                let base = if image == "scratch" {
                    Origin::Scratch
                } else {
                    named(&stages, &image).unwrap_or(Origin::Image(image))
                };
                stages.push(Stage {
                    name: name.clone().unwrap_or_else(|| stages.len().to_string()),
                    base,
                    from: instruction.clone(),
                    instructions: Vec::new(),
                    copies: BTreeMap::new(),
                });
            }
            InstructionKind::Arg(arguments) if stages.is_empty() => {
                for (name, default) in arguments {
                    let given = wishes
                        .arguments
                        .iter()
                        .rev()
                        .find(|(known, _)| known == name);
                    let value = match (given, default) {
                        (Some((_, given)), _) => Some(given.clone()),
                        (None, Some(default)) => Some(value(&globals, default)?),
                        (None, None) => None,
                    };
                    globals.push((name.clone(), value));
                }
            }
            kind => {
                // The parser lets nothing else come before the first FROM.
                let Some((stage, earlier)) = stages.split_last_mut() else {
                    continue;
                };
                if let InstructionKind::Copy(copy) = kind
                    && let Some(from) = &copy.from
                {
                    let from = value(&globals, from)?;
                    let origin = match from.parse::<usize>() {
                        Ok(number) if number < earlier.len() => Origin::Stage(number),
                        Ok(_) => {
                            return Err(DockerfileError::new(
                                instruction.line,
                                &instruction.text,
                                format!("there is no earlier stage {from}"),
                            ));
                        }
                        Err(_) if from.to_ascii_lowercase() == stage.name => {
                            return Err(DockerfileError::new(
                                instruction.line,
                                &instruction.text,
                                "a stage cannot copy from itself",
                            ));
                        }
                        Err(_) => named(earlier, &from).unwrap_or(Origin::Image(from)),
                    };
                    stage.copies.insert(stage.instructions.len(), origin);
                }
                stage.instructions.push(instruction.clone());
            }
        }
    }
    let target = match wishes.target {
        None => stages.len() - 1,
        Some(name) => find_target(&stages, name)?,
    };
    let mut needed = vec![false; stages.len()];
    let mut ahead = vec![target];
    while let Some(index) = ahead.pop() {
        if std::mem::replace(&mut needed[index], true) {
            continue;
        }
        let stage = &stages[index];
        for origin in std::iter::once(&stage.base).chain(stage.copies.values()) {
            if let Origin::Stage(other) = origin {
                ahead.push(*other);
            }
        }
    }
    Ok(Plan {
        stages,
        target,
        needed,
        globals,
    })
}

fn named(stages: &[Stage], name: &str) -> Option<Origin> {
    let name = name.to_ascii_lowercase();
    stages
        .iter()
        .position(|stage| stage.name == name && name.parse::<usize>().is_err())
        .map(Origin::Stage)
}

fn find_target(stages: &[Stage], name: &str) -> Result<usize, DockerfileError> {
    let lower = name.to_ascii_lowercase();
    if let Some(index) = stages.iter().position(|stage| stage.name == lower) {
        return Ok(index);
    }
    if let Ok(index) = name.parse::<usize>()
        && index < stages.len()
    {
        return Ok(index);
    }
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    Err(
        DockerfileError::new(1, "", format!("there is no stage {name:?}"))
            .with_hint(format!("the stages are {}", names.join(", "))),
    )
}

fn check_platform(
    instruction: &Instruction,
    wanted: &str,
    host: &sbxrt_image::Platform,
) -> Result<(), DockerfileError> {
    let refuse = |reason: String| {
        DockerfileError::new(instruction.line, &instruction.text, reason)
            .with_hint(format!("leave --platform out, or write {host}"))
    };
    let platform: sbxrt_image::Platform = wanted
        .parse()
        .map_err(|error: sbxrt_image::InvalidPlatform| refuse(error.to_string()))?;
    if platform != *host {
        return Err(refuse(format!(
            "this machine is {host} and cannot build for {platform}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(
        text: &str,
        arguments: &[(&str, &str)],
        target: Option<&str>,
    ) -> Result<Plan, String> {
        let dockerfile = Dockerfile::parse("Dockerfile", text.as_bytes()).unwrap();
        let arguments: Vec<(String, String)> = arguments
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let platform = "linux/amd64".parse().unwrap();
        plan(
            &dockerfile,
            Wishes {
                arguments: &arguments,
                target,
                platform: &platform,
            },
        )
        .map_err(|error| error.to_string())
    }

    const STAGES: &str = "ARG V=1\nARG W\nFROM base:$V AS one\nRUN x\nFROM one AS Two\nFROM img AS three\n\
        COPY --from=two /a /b\nCOPY --from=0 /c /d\nCOPY --from=other:$W /e /f\nFROM scratch\nCOPY --from=three / /\n";

    #[test]
    fn stages_are_found_by_name_and_number() {
        let plan = planned(STAGES, &[("W", "5")], None).unwrap();
        let bases: Vec<&Origin> = plan.stages.iter().map(|stage| &stage.base).collect();
        let image = |name: &str| Origin::Image(name.to_owned());
        assert_eq!(
            bases,
            [
                &image("base:1"),
                &Origin::Stage(0),
                &image("img"),
                &Origin::Scratch
            ]
        );
        let copies: Vec<&Origin> = plan.stages[2].copies.values().collect();
        assert_eq!(
            copies,
            [&Origin::Stage(1), &Origin::Stage(0), &image("other:5")]
        );
        assert_eq!(plan.needed, [true, true, true, true]);
    }

    #[test]
    fn only_what_the_target_needs_is_built() {
        let table: [(&str, &[bool]); 4] = [
            ("one", &[true, false, false, false]),
            ("TWO", &[true, true, false, false]),
            ("three", &[true, true, true, false]),
            ("0", &[true, false, false, false]),
        ];
        for (target, needed) in table {
            assert_eq!(
                planned(STAGES, &[], Some(target)).unwrap().needed,
                needed,
                "{target}"
            );
        }
    }

    #[test]
    fn what_cannot_be_planned_is_an_error() {
        let table = [
            (
                "FROM $NONE",
                None,
                "Dockerfile:1: the name of the image is empty",
            ),
            (
                "FROM a AS x\nFROM b AS X",
                None,
                "Dockerfile:2: another stage has this name",
            ),
            (
                "FROM a\nCOPY --from=0 x y",
                None,
                "Dockerfile:2: there is no earlier stage 0",
            ),
            (
                "FROM a AS x\nCOPY --from=x x y",
                None,
                "Dockerfile:2: a stage cannot copy from itself",
            ),
            (
                "FROM a AS x",
                Some("y"),
                "Dockerfile:1: there is no stage \"y\"",
            ),
            (
                "FROM --platform=linux/arm64 a",
                None,
                "Dockerfile:1: this machine is linux/amd64 and cannot build for linux/arm64",
            ),
        ];
        for (text, target, expected) in table {
            assert_eq!(planned(text, &[], target).unwrap_err(), expected, "{text}");
        }
        assert!(planned("FROM --platform=$BUILDPLATFORM a", &[], None).is_ok());
    }
}
