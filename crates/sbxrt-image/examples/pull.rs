//! Pulls an image into a store and says where its files are: `pull STORE IMAGE`.
#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::path::Path;
use std::time::Instant;

use sbxrt_image::{Event, LayerState, Progress, PullOptions, Source, Store};

struct Lines;

impl Progress for Lines {
    fn event(&self, event: Event) {
        match event {
            Event::Resolved { name, digest, .. } => println!("{name} is {digest}"),
            Event::Layer {
                state: LayerState::Advanced(_),
                ..
            } => {}
            Event::Layer {
                digest,
                size,
                state,
            } => println!("{} {size:>12} {state:?}", digest.short()),
            _ => {}
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(store), Some(image)) = (arguments.next(), arguments.next()) else {
        return Err("usage: pull STORE IMAGE".into());
    };
    let store = Store::open(Path::new(&store))?;
    let source: Source = image.parse()?;
    let options = PullOptions::default();
    let begun = Instant::now();
    let image = match store.pull(&source, &options, &Lines).await {
        Ok(image) => image,
        Err(error) => {
            if let Some(hint) = error.hint() {
                println!("hint: {hint}");
            }
            return Err(error.into());
        }
    };
    println!(
        "{} bytes in {:.3?}: {:?}",
        image.size,
        begun.elapsed(),
        image.rootfs
    );
    let begun = Instant::now();
    let found = store.find(&source, &options.platform)?;
    println!(
        "found again in {:.1?}: {}",
        begun.elapsed(),
        found == Some(image)
    );
    Ok(())
}
