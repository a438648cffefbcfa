//! By what a step of a build is known again.

use sbxrt_image::Digest;
use serde_json::{Value, json};

/// Changes whenever a step would make something else of the same words.
const VERSION: u32 = 1;

/// The digest of all that a step depends on: what it is made on (by content), what it does, and what it is given.
pub(crate) fn key(parent: Option<&Digest>, kind: &str, parts: &Value) -> Digest {
    let parent = parent.map(ToString::to_string);
    // The library's maps are sorted or keep the order they are written in; either way it is the same each time.
    let text = json!([VERSION, parent, kind, parts]).to_string();
    Digest::of(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_every_part() {
        let parent = Digest::of(b"parent");
        let keys = [
            key(None, "run", &json!({"words": ["a"]})),
            key(Some(&parent), "run", &json!({"words": ["a"]})),
            key(Some(&parent), "copy", &json!({"words": ["a"]})),
            key(Some(&parent), "run", &json!({"words": ["a", ""]})),
        ];
        for (index, left) in keys.iter().enumerate() {
            assert!(keys[index + 1..].iter().all(|right| left != right));
        }
        assert_eq!(keys[0], key(None, "run", &json!({"words": ["a"]})));
    }
}
