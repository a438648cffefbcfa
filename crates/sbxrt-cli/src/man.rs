//! The manual pages, from the same definition as `--help`.

use std::path::Path;

use clap::CommandFactory as _;

use crate::args::Arguments;
use crate::error::{Error, Result};

/// Writes the manual pages into `directory`.
pub(crate) fn write(directory: &Path) -> Result<()> {
    let failed = |source| Error::Output {
        stream: "the manual pages",
        source,
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Arguments::command(), directory).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_in_the_repository_are_up_to_date() {
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/man");
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let read = |directory: &Path| {
            let mut pages = std::fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| {
                    (
                        path.file_name().unwrap().to_owned(),
                        std::fs::read_to_string(&path).unwrap(),
                    )
                })
                .collect::<Vec<_>>();
            pages.sort();
            pages
        };
        assert!(
            read(&committed) == read(directory.path()),
            "docs/man is out of date; hint: cargo run -p sbxrt-cli -- man docs/man"
        );
    }
}
