//! A registry of a few lines that takes what is pushed.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sbxrt_image::Digest;

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    query: String,
    pub(crate) length: usize,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What it does wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    None,
    Status(u16),
    Unauthorized,
    /// Takes so many bytes of a body and hangs up.
    CutAfter(usize),
    /// The same, and forgets the upload.
    Forget(usize),
    /// Sends an upload to another origin.
    Location(String),
    /// Calls a manifest by another digest.
    OtherDigest,
}

#[derive(Default)]
struct State {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, Vec<u8>>,
    uploads: HashMap<String, Vec<u8>>,
    requests: Vec<Request>,
    begun: usize,
}

type Plan = dyn Fn(&Request, usize) -> Fault + Send + Sync;

/// A registry on a port of its own, for as long as the process lives.
pub(crate) struct Taker {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Taker {
    /// `plan` says what goes wrong with a request, of which there were so many alike before: of that method, and with a
    /// body of more than 1000 bytes or not.
    pub(crate) fn new(plan: impl Fn(&Request, usize) -> Fault + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let plan: Arc<Plan> = Arc::new(plan);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let (state, plan) = (Arc::clone(&shared), Arc::clone(&plan));
                // A client that hangs up has its reasons.
                std::thread::spawn(move || drop(serve(stream, &state, &*plan)));
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.state
            .lock()
            .unwrap()
            .blobs
            .get(&digest.to_string())
            .cloned()
    }

    pub(crate) fn manifest(&self, name: &str) -> Option<Vec<u8>> {
        self.state.lock().unwrap().manifests.get(name).cloned()
    }
}

fn answer(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)]) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: 0\r\n");
    for (name, value) in headers {
        head.extend([*name, ": ", *value, "\r\n"]);
    }
    stream.write_all(format!("{head}\r\n").as_bytes())
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, plan: &Plan) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let request = read_head(&mut reader)?;
    let is_large = request.length > 1000;
    let fault = {
        let mut state = state.lock().unwrap();
        let alike =
            |other: &&Request| other.method == request.method && (other.length > 1000) == is_large;
        let number = state.requests.iter().filter(alike).count();
        state.requests.push(request.clone());
        plan(&request, number)
    };
    let wanted = match fault {
        Fault::CutAfter(bytes) | Fault::Forget(bytes) => bytes.min(request.length),
        _ => request.length,
    };
    let mut body = vec![0; wanted];
    reader.read_exact(&mut body)?;
    let mut state = state.lock().unwrap();
    let (_, rest) = request.path.split_once("/a/b/").unwrap_or_default();
    let upload = rest
        .strip_prefix("blobs/uploads/")
        .unwrap_or_default()
        .to_owned();
    match fault {
        Fault::Status(status) => return answer(&mut stream, status, &[]),
        Fault::Unauthorized => {
            return answer(
                &mut stream,
                401,
                &[("WWW-Authenticate", "Basic realm=\"x\"")],
            );
        }
        Fault::Forget(_) => {
            state.uploads.remove(&upload);
            return Ok(());
        }
        Fault::CutAfter(_) => {
            state.uploads.entry(upload).or_default().extend(body);
            return Ok(());
        }
        _ => {}
    }
    let location = |upload: &str| format!("/v2/a/b/blobs/uploads/{upload}?state=x");
    let range = |bytes: &[u8]| format!("0-{}", bytes.len().saturating_sub(1));
    match (request.method.as_str(), rest) {
        ("HEAD", _) => {
            let has = rest
                .strip_prefix("blobs/")
                .is_some_and(|digest| state.blobs.contains_key(digest));
            answer(&mut stream, if has { 200 } else { 404 }, &[])
        }
        ("POST", "blobs/uploads/") => {
            state.begun += 1;
            let name = state.begun.to_string();
            state.uploads.insert(name.clone(), Vec::new());
            let mut to = location(&name);
            if let Fault::Location(origin) = fault {
                to = format!("{origin}{to}");
            }
            answer(&mut stream, 202, &[("Location", &to)])
        }
        ("GET", _) => match state.uploads.get(&upload) {
            Some(bytes) => {
                let headers = [("Location", location(&upload)), ("Range", range(bytes))];
                answer(
                    &mut stream,
                    204,
                    &headers
                        .each_ref()
                        .map(|(name, value)| (*name, value.as_str())),
                )
            }
            None => answer(&mut stream, 404, &[]),
        },
        ("PATCH", _) => {
            let Some(bytes) = state.uploads.get_mut(&upload) else {
                return answer(&mut stream, 404, &[]);
            };
            let begins = request
                .header("content-range")
                .and_then(|range| range.split('-').next()?.parse::<usize>().ok())
                .unwrap_or(0);
            if begins != bytes.len() {
                return answer(&mut stream, 416, &[]);
            }
            bytes.extend(body);
            let headers = [("Location", location(&upload)), ("Range", range(bytes))];
            answer(
                &mut stream,
                202,
                &headers
                    .each_ref()
                    .map(|(name, value)| (*name, value.as_str())),
            )
        }
        ("PUT", _) if rest.starts_with("blobs/uploads/") => {
            let wanted = request
                .query
                .split('&')
                .find_map(|pair| pair.strip_prefix("digest="))
                .unwrap_or_default()
                .replace("%3A", ":");
            let bytes = state.uploads.remove(&upload).unwrap_or_default();
            if Digest::of(&bytes).to_string() != wanted {
                return answer(&mut stream, 400, &[]);
            }
            state.blobs.insert(wanted, bytes);
            answer(&mut stream, 201, &[])
        }
        ("PUT", _) => {
            let name = rest
                .strip_prefix("manifests/")
                .unwrap_or_default()
                .to_owned();
            let digest = match fault {
                Fault::OtherDigest => Digest::of(b"another"),
                _ => Digest::of(&body),
            };
            state.manifests.insert(name, body);
            answer(
                &mut stream,
                201,
                &[("Docker-Content-Digest", &digest.to_string())],
            )
        }
        ("DELETE", _) => {
            state.uploads.remove(&upload);
            answer(&mut stream, 204, &[])
        }
        _ => answer(&mut stream, 404, &[]),
    }
}

fn read_head(reader: &mut BufReader<TcpStream>) -> std::io::Result<Request> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        length: 0,
        headers,
    };
    request.length = request
        .header("content-length")
        .and_then(|value| value.parse().ok())
        .unwrap_or(0);
    Ok(request)
}
