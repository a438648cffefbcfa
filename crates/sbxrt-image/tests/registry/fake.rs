//! A registry of a few lines, whose every answer a test can choose.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use sbxrt_image::Digest;
use serde_json::{Value, json};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether any of these words is anywhere in it.
    pub(crate) fn holds(&self, words: &[&str]) -> bool {
        let whole = format!("{self:?}");
        words.iter().any(|word| whole.contains(word))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    end: End,
}

/// How a body ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Whole,
    Cut(usize),
    Silent(usize),
    Endless,
    Dripping,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            end: End::Whole,
        }
    }

    pub(crate) fn ok(body: Vec<u8>) -> Self {
        Self {
            body,
            ..Self::status(200)
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn manifest(self) -> Self {
        self.header("Content-Type", MANIFEST)
    }

    /// Promises the whole body and closes the connection after so many bytes.
    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.end = End::Cut(bytes.min(self.body.len()));
        self
    }

    /// Promises the whole body and says nothing more after so many bytes.
    pub(crate) fn silent_after(mut self, bytes: usize) -> Self {
        self.end = End::Silent(bytes.min(self.body.len()));
        self
    }

    /// Sends the body over and over without a length.
    pub(crate) fn endless(mut self) -> Self {
        self.end = End::Endless;
        self
    }

    /// Sends the body byte by byte, and takes its time.
    pub(crate) fn dripping(mut self) -> Self {
        self.end = End::Dripping;
        self
    }

    fn write(&self, stream: &mut impl Stream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        if !matches!(self.end, End::Endless) {
            head.extend(["Content-Length: ", &self.body.len().to_string(), "\r\n"]);
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        stream.flush()?;
        match self.end {
            End::Whole => stream.write_all(&self.body),
            End::Cut(bytes) => stream.write_all(&self.body[..bytes]),
            End::Silent(bytes) => {
                stream.write_all(&self.body[..bytes])?;
                // Until the other side gives up.
                stream.flush()?;
                stream.read(&mut [0]).map(|_| ())
            }
            End::Endless => loop {
                stream.write_all(&self.body)?;
            },
            End::Dripping => {
                for byte in &self.body {
                    stream.write_all(&[*byte])?;
                    stream.flush()?;
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                Ok(())
            }
        }
    }
}

/// A connection, with TLS or without.
trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// A registry on a port of its own, for as long as the process lives.
pub(crate) struct Fake {
    address: SocketAddr,
    scheme: &'static str,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// Whether a registry with TLS wants to know who is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clients {
    Any,
    Known,
}

impl Fake {
    pub(crate) fn serve(answers: HashMap<String, Answer>) -> Self {
        Self::new(move |request| {
            answers
                .get(&request.path)
                .cloned()
                .unwrap_or(Answer::status(404))
        })
    }

    pub(crate) fn new(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::with_url(move |request, _| handler(request))
    }

    pub(crate) fn with_url(
        handler: impl Fn(&Request, &str) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::listen(None, handler)
    }

    /// With the certificate of `tls/server.crt`.
    pub(crate) fn with_tls(
        clients: Clients,
        handler: impl Fn(&Request, &str) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(Arc::new(tls(clients))), handler)
    }

    fn listen(
        tls: Option<Arc<ServerConfig>>,
        handler: impl Fn(&Request, &str) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let log = Arc::clone(&requests);
        let handler = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let (log, handler, tls) = (Arc::clone(&log), Arc::clone(&handler), tls.clone());
                std::thread::spawn(move || {
                    // Until the other side gives up.
                    let patience = Some(Duration::from_secs(10));
                    if stream.set_read_timeout(patience).is_err() {
                        return;
                    }
                    let answer = |stream: &mut dyn FnMut() -> Option<Request>| {
                        let request = stream()?;
                        log.lock().unwrap().push(request.clone());
                        Some(handler(&request, &format!("{scheme}://{address}")))
                    };
                    // What a web server says to what is not HTTP.
                    let confused = || Answer::status(400);
                    // A client that hangs up has its reasons.
                    let _hung_up = match tls {
                        None => {
                            let mut stream = stream;
                            answer(&mut || read_request(&mut stream))
                                .unwrap_or_else(confused)
                                .write(&mut stream)
                        }
                        Some(tls) => {
                            let connection = ServerConnection::new(tls).unwrap();
                            let mut stream = StreamOwned::new(connection, stream);
                            let Some(answer) = answer(&mut || read_request(&mut stream)) else {
                                return;
                            };
                            let written = answer.write(&mut stream);
                            stream.conn.send_close_notify();
                            written.and_then(|()| stream.flush())
                        }
                    };
                });
            }
        });
        Self {
            address,
            scheme,
            requests,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn read_request(stream: &mut impl Stream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    // A greeting in TLS has no lines to wait for.
    if reader.fill_buf().ok()?.first() == Some(&0x16) {
        return None;
    }
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = Vec::new();
    let mut length = 0;
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        if name == "content-length" {
            length = value.parse().ok()?;
        }
        headers.push((name, value));
    }
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body).ok()?;
    Some(Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        body,
        headers,
    })
}

fn tls(clients: Clients) -> ServerConfig {
    let certificate = |pem: &[u8]| CertificateDer::from_pem_slice(pem).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        Clients::Any => builder.with_no_client_auth(),
        Clients::Known => {
            let mut roots = RootCertStore::empty();
            roots
                .add(certificate(include_bytes!("tls/ca.crt")))
                .unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).unwrap();
    builder
        .with_single_cert(vec![certificate(include_bytes!("tls/server.crt"))], key)
        .unwrap()
}

/// An image, with all its bytes.
pub(crate) struct FakeImage {
    pub(crate) blobs: HashMap<Digest, Vec<u8>>,
    pub(crate) layers: Vec<Digest>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    diff_ids: Vec<Digest>,
    architecture: String,
}

impl FakeImage {
    /// Makes an image of layers, compressed or not.
    pub(crate) fn new(layers: &[Vec<u8>]) -> Self {
        let mut image = Self {
            blobs: HashMap::new(),
            layers: layers.iter().map(|layer| Digest::of(layer)).collect(),
            config: Vec::new(),
            manifest: Vec::new(),
            diff_ids: layers
                .iter()
                .map(|layer| Digest::of(&gunzip(layer)))
                .collect(),
            architecture: "amd64".to_owned(),
        };
        image.blobs.extend(
            layers
                .iter()
                .map(|layer| (Digest::of(layer), layer.clone())),
        );
        image.describe();
        image
    }

    pub(crate) fn set_diff_ids(&mut self, diff_ids: &[Digest]) {
        self.diff_ids = diff_ids.to_vec();
        self.describe();
    }

    pub(crate) fn set_architecture(&mut self, architecture: &str) {
        architecture.clone_into(&mut self.architecture);
        self.describe();
    }

    fn describe(&mut self) {
        let config = json!({
            "os": "linux", "architecture": self.architecture, "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        self.config = config.to_string().into_bytes();
        let describe = |digest: &Digest| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest,
                "size": self.blobs[digest].len(),
            })
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&self.config), "size": self.config.len(),
            },
            "layers": self.layers.iter().map(describe).collect::<Vec<_>>(),
        });
        self.manifest = manifest.to_string().into_bytes();
    }

    pub(crate) fn answers(&self) -> HashMap<String, Answer> {
        self.answers_as("tag")
    }

    /// What a registry answers that has this image as `a/b:TAG`.
    pub(crate) fn answers_as(&self, tag: &str) -> HashMap<String, Answer> {
        let manifest = Answer::ok(self.manifest.clone()).manifest();
        let mut answers = HashMap::from([
            (format!("/v2/a/b/manifests/{tag}"), manifest.clone()),
            (
                format!("/v2/a/b/manifests/{}", Digest::of(&self.manifest)),
                manifest,
            ),
            (
                format!("/v2/a/b/blobs/{}", Digest::of(&self.config)),
                Answer::ok(self.config.clone()),
            ),
        ]);
        for (digest, bytes) in &self.blobs {
            answers.insert(format!("/v2/a/b/blobs/{digest}"), Answer::ok(bytes.clone()));
        }
        answers
    }

    fn layout(&self) -> Vec<(String, Vec<u8>)> {
        let entry = json!({
            "mediaType": MANIFEST, "digest": Digest::of(&self.manifest), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "one"},
        });
        let index: Value = json!({"schemaVersion": 2, "manifests": [entry]});
        let blobs = self.blobs.values().chain([&self.config, &self.manifest]);
        let mut files = blobs
            .map(|bytes| {
                (
                    format!("blobs/sha256/{}", Digest::of(bytes).hex()),
                    bytes.clone(),
                )
            })
            .collect::<Vec<_>>();
        files.push((
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ));
        files.push(("index.json".to_owned(), index.to_string().into_bytes()));
        files
    }

    pub(crate) fn write_layout(&self, directory: &Path) {
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        for (name, bytes) in self.layout() {
            fs::write(directory.join(name), bytes).unwrap();
        }
    }

    pub(crate) fn write_oci_archive(&self, path: &Path) {
        fs::write(path, archive(&self.layout())).unwrap();
    }

    pub(crate) fn write_docker_archive(&self, path: &Path) {
        let config = format!("{}.json", Digest::of(&self.config).hex());
        let names = (0..self.layers.len())
            .map(|index| format!("{index}/layer.tar"))
            .collect::<Vec<_>>();
        let list = json!([{"Config": config, "RepoTags": ["name:tag"], "Layers": names}]);
        let mut files = vec![
            (config, self.config.clone()),
            ("manifest.json".to_owned(), list.to_string().into_bytes()),
        ];
        for (name, layer) in names.into_iter().zip(&self.layers) {
            files.push((name, gunzip(&self.blobs[layer])));
        }
        fs::write(path, archive(&files)).unwrap();
    }
}

/// Makes a layer: a name that ends in a slash is a directory.
pub(crate) fn tarball(entries: &[(&str, &str)]) -> Vec<u8> {
    let files = entries
        .iter()
        .map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec()))
        .collect::<Vec<_>>();
    archive(&files)
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        let kind = if name.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        };
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, name, content.as_slice())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain) {
        Ok(_) => plain,
        Err(_) => bytes.to_vec(),
    }
}
