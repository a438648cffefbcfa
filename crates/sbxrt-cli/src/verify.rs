//! `sbxrt verify`: whether the store still holds what was pulled.

use sbxrt::image::{Object, Repair, Verified};
use serde::Serialize;

use crate::args::VerifyArguments;
use crate::error::Result;
use crate::location;
use crate::printer::Printer;
use crate::quantity::count;

/// What was found, for programs.
#[derive(Debug, Serialize)]
struct Document<'a> {
    images: usize,
    blobs: usize,
    layers: usize,
    unverifiable: Vec<String>,
    damaged: Vec<Damaged<'a>>,
}

#[derive(Debug, Serialize)]
struct Damaged<'a> {
    kind: &'static str,
    name: String,
    reasons: &'a [String],
    images: &'a [String],
    removed: bool,
}

/// Holds images against what was pulled; `false` where something is damaged, even if it was repaired.
pub(crate) fn run(arguments: &VerifyArguments, printer: Printer) -> Result<bool> {
    let store = location::open(&arguments.store)?;
    let repair = if arguments.repair {
        Repair::Remove
    } else {
        Repair::No
    };
    let verified = store.verify(&arguments.images, repair)?;
    let sound = verified.damaged.is_empty();
    if arguments.json {
        printer.document(&document(&verified))?;
        return Ok(sound);
    }
    for damage in &verified.damaged {
        let object = &damage.object;
        printer.data(&format!(
            "{object}: {}\n",
            if damage.removed {
                "damaged, removed"
            } else {
                "damaged"
            }
        ))?;
        for reason in &damage.reasons {
            printer.data(&format!("  {}\n", crate::diagnostics::harmless(reason)))?;
        }
        for image in &damage.images {
            printer.data(&format!("  in {}\n", crate::diagnostics::harmless(image)))?;
        }
    }
    printer.note(&summary(&verified));
    if verified.damaged.iter().any(|damage| !damage.removed) {
        let advice = if arguments.repair {
            "what a sandbox runs from stays; try again when it has ended"
        } else {
            "`sbxrt verify --repair` removes what is damaged, and the next pull gets it anew"
        };
        printer.note(&format!("hint: {advice}"));
    }
    Ok(sound)
}

fn document(verified: &Verified) -> Document<'_> {
    let damaged = verified.damaged.iter().map(|damage| {
        let (kind, name) = match &damage.object {
            Object::Image(name) => ("image", name.clone()),
            Object::Blob(digest) => ("blob", digest.to_string()),
            Object::Layer(chain_id) => ("layer", chain_id.to_string()),
        };
        Damaged {
            kind,
            name,
            reasons: &damage.reasons,
            images: &damage.images,
            removed: damage.removed,
        }
    });
    Document {
        images: verified.images,
        blobs: verified.blobs,
        layers: verified.layers,
        unverifiable: verified
            .unverifiable
            .iter()
            .map(ToString::to_string)
            .collect(),
        damaged: damaged.collect(),
    }
}

fn summary(verified: &Verified) -> String {
    let looked_at = [
        (verified.images, "image"),
        (verified.blobs, "document"),
        (verified.layers, "layer"),
    ];
    let looked_at = looked_at
        .map(|(number, noun)| count(number, noun))
        .join(", ");
    let damaged = match verified.damaged.len() {
        0 => "all sound".to_owned(),
        number => format!("{number} damaged"),
    };
    match verified.unverifiable.len() {
        0 => format!("Verified {looked_at}: {damaged}"),
        number => format!(
            "Verified {looked_at}: {damaged}; the contents of {} cannot be verified",
            count(number, "layer")
        ),
    }
}
