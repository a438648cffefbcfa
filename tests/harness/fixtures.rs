//! Where the images of `scripts/fixtures` are.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{Need, Sbxrt, require};

/// The images on disk, in the syntax of `sbxrt run`.
#[derive(Debug, Clone)]
pub struct Fixtures {
    directory: PathBuf,
}

impl Fixtures {
    /// The images, or `None` where the test should return.
    pub fn find() -> Option<Self> {
        let directory =
            require(Need::Fixtures).then(|| std::env::var_os("SBXRT_TEST_FIXTURES").unwrap())?;
        Some(Self {
            directory: directory.into(),
        })
    }

    /// A root filesystem of busybox: `dir:…`.
    pub fn busybox_rootfs(&self) -> String {
        format!("dir:{}/busybox-rootfs", self.directory.display())
    }

    /// A root filesystem of Debian and Python: `dir:…`.
    pub fn python_rootfs(&self) -> String {
        format!("dir:{}/python-rootfs", self.directory.display())
    }

    /// A tag of an OCI layout: `oci:…`.
    pub fn layout(&self, name: &str, tag: &str) -> String {
        format!("oci:{}/{name}:{tag}", self.directory.display())
    }

    /// The busybox image with another configuration and manifest, in a directory of the user's: `oci:…`.
    pub fn variant(
        &self,
        sbxrt: &Sbxrt,
        name: &str,
        change: impl FnOnce(&mut Value, &mut Value),
    ) -> String {
        let directory = sbxrt.scratch(name);
        let from = self.directory.join("busybox");
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let read =
            |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            from.join("blobs/sha256")
                .join(digest.strip_prefix("sha256:").unwrap())
        };
        let mut index = read(&from.join("index.json"));
        let latest =
            |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == "latest";
        let mut entry = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .find(latest)
            .unwrap()
            .clone();
        let mut manifest = read(&blob(&entry));
        for layer in manifest["layers"].as_array().unwrap() {
            let path = blob(layer);
            fs::copy(&path, blobs.join(path.file_name().unwrap())).unwrap();
        }
        let mut configuration = read(&blob(&manifest["config"]));
        change(&mut configuration, &mut manifest);
        let put = |document: &Value, descriptor: &mut Value| {
            let bytes = serde_json::to_vec(document).unwrap();
            let digest: Vec<String> = Sha256::digest(&bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let digest = digest.concat();
            descriptor["size"] = bytes.len().into();
            fs::write(blobs.join(&digest), bytes).unwrap();
            descriptor["digest"] = format!("sha256:{digest}").into();
        };
        put(&configuration, &mut manifest["config"]);
        put(&manifest, &mut entry);
        index["manifests"] = vec![entry].into();
        fs::write(directory.join("index.json"), index.to_string()).unwrap();
        fs::copy(from.join("oci-layout"), directory.join("oci-layout")).unwrap();
        format!("oci:{}:latest", directory.display())
    }

    /// The busybox image as `oci-archive:…`.
    pub fn oci_archive(&self) -> String {
        format!("oci-archive:{}/busybox.oci.tar", self.directory.display())
    }

    /// The busybox image as `docker-archive:…`.
    pub fn docker_archive(&self) -> String {
        format!(
            "docker-archive:{}/busybox.docker.tar",
            self.directory.display()
        )
    }
}

/// The store with the images of `rootfs/build`, which belongs to [`Identity::ordinary`](crate::Identity::ordinary); or
/// `None` where the test should return.
pub fn languages() -> Option<PathBuf> {
    require(Need::Languages).then(|| std::env::var_os("SBXRT_TEST_LANGUAGES").unwrap().into())
}

/// The registry's `HOST:PORT`, or `None` where the test should return.
pub fn registry() -> Option<String> {
    require(Need::Registry).then(|| std::env::var("SBXRT_TEST_REGISTRY").unwrap())
}

/// What the registry was asked for: the lines of its access log, which other tests add to at the same time.
///
/// # Panics
///
/// Where there is a registry without a log: both come from `scripts/with-registry`.
pub fn registry_requests() -> Vec<Request> {
    let path = std::env::var("SBXRT_TEST_REGISTRY_LOG").expect("with-registry sets it");
    let log = fs::read_to_string(path).unwrap();
    log.lines().filter_map(Request::parse).collect()
}

/// A request to the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`.
    pub method: String,
    /// The path, such as `/v2/busybox/blobs/sha256:…`.
    pub path: String,
    /// The HTTP status.
    pub status: u16,
}

impl Request {
    /// Reads a line in Apache's combined format.
    fn parse(line: &str) -> Option<Self> {
        // … "GET /v2/busybox/manifests/latest HTTP/1.1" 200 …
        let (_, rest) = line.split_once("] \"")?;
        let (request, rest) = rest.split_once('"')?;
        let mut words = request.split(' ');
        Some(Self {
            method: words.next()?.to_owned(),
            path: words.next()?.to_owned(),
            status: rest.trim_start().split(' ').next()?.parse().ok()?,
        })
    }
}
