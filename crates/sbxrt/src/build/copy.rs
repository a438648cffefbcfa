//! `COPY`, `ADD` and what else makes a layer of files: asks the cache, else copies.

use std::path::PathBuf;
use std::sync::Arc;

use sbxrt_image::{
    AssembledLayer, CachedStep, Copy, CopySource, Digest, Everything, Filled, Limits, NodeKind,
    Stack, Store, UnpackedArchive,
};

use super::cache::key;
use super::context::{Context, Found, find, owner};
use crate::error::Result;

/// Where the sources are.
#[derive(Clone, Debug)]
pub(crate) enum Root {
    /// In the context.
    Context(Arc<Context>),
    /// In layers, bottom first.
    Layers(Vec<PathBuf>),
    /// In a directory that is a whole image.
    Directory(PathBuf),
}

/// A `COPY` whose words are expanded.
#[derive(Clone, Debug)]
pub(crate) struct CopyWork {
    pub(crate) store: Arc<Store>,
    pub(crate) root: Root,
    pub(crate) sources: Vec<String>,
    /// Files of the Dockerfile itself: names and contents.
    pub(crate) contents: Vec<(String, Vec<u8>)>,
    pub(crate) destination: String,
    pub(crate) chown: Option<String>,
    pub(crate) mode: Option<u32>,
    pub(crate) unpacks: bool,
    pub(crate) base: Base,
}

/// What a step makes its layer on.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    /// The layers, bottom first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) chain_id: Option<Digest>,
    /// No time in the new layer is later.
    pub(crate) latest: Option<i64>,
    /// When the new layer is made, as the history says it.
    pub(crate) created: String,
    pub(crate) use_cache: bool,
}

/// What became of a step: what it made and whether it was there already. The inner error is a mistake of the Dockerfile.
pub(crate) type Outcome = Result<Result<(CachedStep, bool), String>>;

impl CopyWork {
    /// Does it. It takes as long as it takes, and blocks.
    pub(crate) fn run(&self) -> Outcome {
        let everything = Everything;
        let (stack, filter): (Stack, &dyn sbxrt_image::Filter) = match &self.root {
            Root::Context(context) => (Stack::of_directory(&context.directory)?, &context.ignore),
            Root::Layers(layers) => (Stack::of_layers(layers)?, &everything),
            Root::Directory(directory) => (Stack::of_directory(directory)?, &everything),
        };
        let is_context = matches!(self.root, Root::Context(_));
        let owner = match &self.chown {
            None => None,
            Some(wanted) => match owner(&Stack::of_layers(&self.base.layers)?, wanted)? {
                Ok(owner) => Some(owner),
                Err(reason) => return Ok(Err(reason)),
            },
        };
        let mut found = Vec::new();
        for source in &self.sources {
            match find(&stack, source, filter, is_context)? {
                Ok(paths) => found.extend(paths),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        let archives = self.unpack(&stack, &found)?;
        let archive_stacks = archives
            .iter()
            .map(|archive| archive.as_ref().map(UnpackedArchive::stack).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let mut sources = Vec::new();
        for (found, archive) in found.iter().zip(&archive_stacks) {
            sources.push(match archive {
                Some(archive) => CopySource::Path {
                    stack: archive,
                    path: Vec::new(),
                    name: Vec::new(),
                    filter: &everything,
                },
                None => CopySource::Path {
                    stack: &stack,
                    path: found.path.clone(),
                    name: found.name.clone(),
                    filter,
                },
            });
        }
        for (name, bytes) in &self.contents {
            sources.push(CopySource::Content {
                name: name.clone().into_bytes(),
                bytes: bytes.clone(),
            });
        }
        let copy = Copy {
            sources,
            destination: self.destination.clone(),
            owner,
            mode: self.mode,
        };
        let key_of = |digest: &Digest| {
            key(
                self.base.chain_id.as_ref(),
                "copy",
                &serde_json::json!({
                    "digest": digest.to_string(),
                    "destination": self.destination,
                    "sources": copy.sources.len(),
                    "latest": self.base.latest,
                }),
            )
        };
        if self.base.use_cache
            && let Some(step) = self.store.cached_step(&key_of(&copy.digest()?))
        {
            return Ok(Ok((step, true)));
        }
        let mut draft = self.store.draft(&self.base.layers)?;
        // What was copied counts, should it have changed since it was looked at.
        let digest = draft.copy(&copy)?;
        let layer = draft.finish(
            self.base.chain_id.as_ref(),
            Filled::ByCopying,
            self.base.latest,
        )?;
        Ok(Ok((
            self.base.keep(&self.store, &key_of(&digest), layer)?,
            false,
        )))
    }

    fn unpack(&self, stack: &Stack, found: &[Found]) -> Result<Vec<Option<UnpackedArchive>>> {
        let mut archives = Vec::new();
        for found in found {
            let file = match stack.node(&found.path)? {
                Some(node) if self.unpacks && node.kind == NodeKind::File => {
                    Some(stack.open_file(&found.path, &node)?)
                }
                _ => None,
            };
            archives.push(match file {
                Some(file) => {
                    let name = String::from_utf8_lossy(&found.path).into_owned();
                    self.store.unpack_archive(file, &name, &Limits::default())?
                }
                None => None,
            });
        }
        Ok(archives)
    }
}

impl Base {
    /// Notes what a step made in the cache.
    pub(crate) fn keep(
        &self,
        store: &Store,
        key: &Digest,
        layer: Option<AssembledLayer>,
    ) -> Result<CachedStep> {
        let step = CachedStep {
            layer,
            created: self.created.clone(),
        };
        store.cache_step(key, &step)?;
        Ok(step)
    }

    /// Makes a directory, as `WORKDIR` does.
    pub(crate) fn make_directory(&self, store: &Store, path: &str) -> Outcome {
        let key = key(
            self.chain_id.as_ref(),
            "workdir",
            &serde_json::json!({"path": path, "latest": self.latest}),
        );
        if self.use_cache
            && let Some(step) = store.cached_step(&key)
        {
            return Ok(Ok((step, true)));
        }
        let mut draft = store.draft(&self.layers)?;
        let layer = if draft.make_directory(path)? {
            draft.finish(self.chain_id.as_ref(), Filled::ByCopying, self.latest)?
        } else {
            None
        };
        Ok(Ok((self.keep(store, &key, layer)?, false)))
    }
}
