//! The key of an item: what it is recognised by when a batch goes on.
//!
//! It is the SHA-256 of the item as it was written, whatever the order of its fields and its spaces, together with the image
//! and everything that the command line says of a run. Files of volumes are not looked at.

use std::fmt;
use std::str::FromStr;

use sbxrt::{Image, Seccomp};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::policy::{Bounds, Policy};

/// 32 bytes that are the same for the same work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key([u8; 32]);

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl FromStr for Key {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err("a key has 64 digits");
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_not_text| "a key has only digits")?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_not_hex| "a key has only digits")?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What all items of a batch have in common.
#[derive(Debug)]
pub(crate) struct Common(Vec<u8>);

impl Common {
    /// Of the command line: the words behind the image, the limits, the policy and the bounds on outputs.
    pub(crate) fn new(
        words: &[String],
        bounds: &Bounds,
        policy: &Policy,
        outputs: sbxrt::OutputLimits,
    ) -> Self {
        let seccomp = match &policy.seccomp {
            Seccomp::Default => json!("default"),
            Seccomp::Profile(profile) => json!(profile),
            Seccomp::Unconfined => json!("unconfined"),
        };
        Self(canonical(&json!({
            "words": words,
            "limits": bounds.limits,
            "output_limit": bounds.output,
            "output_kills": bounds.output_action == sbxrt::OutputAction::Kill,
            "outputs": outputs,
            "env": policy.variables,
            "workdir": policy.workdir,
            "user": policy.user,
            "entrypoint": policy.entrypoint,
            "hostname": policy.hostname,
            "seccomp": seccomp,
            "mounts": policy.mounts,
            "read_only": policy.read_only,
            "network": policy.network,
            "rlimits": policy.rlimits,
            "require": policy.require,
        })))
    }

    /// The key of `item` in `image`.
    pub(crate) fn key(&self, item: &Value, image: &Image) -> Key {
        let image = match &image.digest {
            Some(digest) => digest.to_string(),
            // A directory, or this machine: what is in it may change, and nobody would notice.
            None => image.name.clone(),
        };
        let mut hash = Sha256::new();
        for part in [
            b"sbxrt batch 1".as_slice(),
            image.as_bytes(),
            &self.0,
            &canonical(item),
        ] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Key(hash.finalize().into())
    }
}

/// A document in the one way of writing it: without spaces, members by name, and without those that are null, so that a
/// setting that comes to be known later changes no key.
fn canonical(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(value, &mut bytes);
    bytes
}

fn write(value: &Value, bytes: &mut Vec<u8>) {
    match value {
        Value::Object(object) => {
            let mut members: Vec<_> = object
                .iter()
                .filter(|(_, value)| !value.is_null())
                .collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            bytes.push(b'{');
            for (index, (name, value)) in members.into_iter().enumerate() {
                if index > 0 {
                    bytes.push(b',');
                }
                scalar(name, bytes);
                bytes.push(b':');
                write(value, bytes);
            }
            bytes.push(b'}');
        }
        Value::Array(values) => {
            bytes.push(b'[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    bytes.push(b',');
                }
                write(value, bytes);
            }
            bytes.push(b']');
        }
        value => scalar(value, bytes),
    }
}

fn scalar(value: &(impl Serialize + ?Sized), bytes: &mut Vec<u8>) {
    // Writing to memory cannot fail, and a text or a number is always JSON.
    drop(serde_json::to_writer(bytes, value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_spaces_and_nulls_make_no_difference() {
        let parse = |text: &str| canonical(&serde_json::from_str(text).unwrap());
        let expected = parse(r#"{"a":[1,{"c":"x\n","d":2.5}],"b":true}"#);
        assert_eq!(expected, br#"{"a":[1,{"c":"x\n","d":2.5}],"b":true}"#);
        assert_eq!(
            parse(r#"{ "b": true, "a": [1, {"d": 2.5, "e": null, "c": "x\n"}] }"#),
            expected
        );
        assert_ne!(parse(r#"{"a":[{"c":"x\n","d":2.5},1],"b":true}"#), expected);
        assert_ne!(
            parse(r#"{"a":["1",{"c":"x\n","d":2.5}],"b":true}"#),
            expected
        );
    }

    #[test]
    fn a_key_survives_being_written() {
        let key = Key(Sha256::digest(b"x").into());
        assert_eq!(
            key.to_string(),
            "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
        );
        assert_eq!(key.to_string().parse(), Ok(key));
        for text in ["", "2d71", &"x".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }
}
