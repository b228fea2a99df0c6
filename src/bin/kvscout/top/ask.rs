//! Asks a daemon for its status.

use std::path::Path;

use serde::Deserialize;

use crate::Failure;
use crate::client::{self, Answer, Client};
use crate::status::Status;

/// A daemon, as seen from here.
#[derive(Debug)]
pub(super) struct Daemon {
    client: Client,
    url: String,
    token: Option<String>,
}

impl Daemon {
    /// The daemon at a URL such as `http://127.0.0.1:13333`.
    pub(super) fn at(url: &str, token_file: Option<&Path>) -> Result<Daemon, Failure> {
        let base = url.trim_end_matches('/');
        if !base.strip_prefix("http://").is_some_and(|host| !host.is_empty() && !host.contains('@'))
        {
            // One with a user may have a password.
            let shown = if url.contains('@') { "with a user" } else { url };
            return Err(Failure::Usage(format!(
                "--url {shown}: expected http://HOST:PORT (a tunnel or proxy speaks TLS for it)"
            )));
        }
        let token = token_file.map(read_token).transpose()?;
        Ok(Daemon { client: Client::new(client::STATUS), url: format!("{base}/v1/status"), token })
    }

    /// How it stands; or why that is not known, in one line.
    pub(super) fn ask(&self) -> Result<Status, String> {
        let asked = self.client.get(&self.url, self.token.as_deref());
        let answer = asked.map_err(|error| error.to_string())?;
        match answer.status().as_u16() {
            200 => {}
            status @ (401 | 403) => return Err(self.refused(status, answer)),
            404 => return Err("status 404: no kvscout, or one too old for this".to_owned()),
            _ => return Err(client::unexpected(answer.status())),
        }
        let text = answer.text().map_err(|error| error.to_string())?;
        let status: Result<Status, _> = serde_json::from_str(&text);
        status.map(plain).map_err(|error| format!("the answer is no status: {error}"))
    }

    /// Why it does not answer: what it says itself, and where a token would change that.
    fn refused(&self, status: u16, answer: Answer) -> String {
        let text = answer.text().unwrap_or_default();
        let Refused { error, reason } = serde_json::from_str(&text).unwrap_or_default();
        let mut said: String = error.chars().take(SENTENCE).collect();
        disarm(&mut said);
        let wants_token = status == 401 || reason == "forbidden";
        if said.is_empty() {
            said = match (wants_token, &self.token) {
                (true, Some(_)) => "it wants another token".to_owned(),
                (true, None) => "it wants a token".to_owned(),
                (false, _) => "it does not say why".to_owned(),
            };
        }
        let token = if wants_token { "; see --token-file" } else { "" };
        format!("status {status}: {said}{token}")
    }
}

/// Characters of a refusal that are shown; a daemon's own are fewer.
const SENTENCE: usize = 600;

/// What a daemon says that refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refused {
    error: String,
    reason: String,
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let wrong = |what: &str| Failure::Usage(format!("--token-file {}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(&error.to_string()))?;
    let token = text.trim();
    match token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Err(wrong("expected one token of printable ASCII")),
        false => Ok(token.to_owned()),
    }
}

/// A status whose texts do nothing to a terminal: who registers a worker chooses its name.
fn plain(mut status: Status) -> Status {
    for line in &mut status.workers {
        let texts = [&mut line.worker, &mut line.tenant, &mut line.trust, &mut line.link];
        let optional = [&mut line.model, &mut line.reason];
        let all = texts.into_iter().chain(optional.into_iter().flatten()).chain(&mut line.warnings);
        all.for_each(disarm);
    }
    disarm(&mut status.version);
    status.not_ready.iter_mut().for_each(disarm);
    status
}

/// Replaces what moves the cursor, or the text around it.
fn disarm(text: &mut String) {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
    };
    if text.contains(acts) {
        *text = text.replace(acts, "\u{fffd}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// What is made of an answer, and the request.
    fn asked(token: Option<&str>, answer: &'static str) -> (Result<Status, String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        let mut daemon = Daemon::at(&url, None).ok().unwrap();
        daemon.token = token.map(str::to_owned);
        (daemon.ask(), server.join().unwrap())
    }

    #[test]
    fn a_token_is_shown_to_the_daemon_and_to_nobody_else() {
        let denied = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
        let (answer, request) = asked(Some("s3cret"), denied);
        assert!(request.to_ascii_lowercase().contains("authorization: bearer s3cret\r\n"));
        let error = answer.unwrap_err();
        assert!(error.contains("another token") && !error.contains("s3cret"), "{error}");
        let (answer, request) = asked(None, denied);
        assert!(!request.to_ascii_lowercase().contains("authorization"), "{request}");
        assert!(answer.unwrap_err().contains("--token-file"));
    }

    #[test]
    fn a_refusal_is_told_as_it_is_said_and_a_token_is_named_where_it_would_help() {
        let named = "HTTP/1.1 403 Forbidden\r\ncontent-length: 49\r\n\r\n\
                     {\"error\":\"no such\\n\\u001b[2J\",\"reason\":\"foreign\"}";
        let error = asked(Some("s3cret"), named).0.unwrap_err();
        assert_eq!(error, "status 403: no such\u{fffd}\u{fffd}[2J");
        let leave = "HTTP/1.1 403 Forbidden\r\ncontent-length: 41\r\n\r\n\
                     {\"error\":\"no leave\",\"reason\":\"forbidden\"}";
        assert_eq!(asked(None, leave).0.unwrap_err(), "status 403: no leave; see --token-file");
        let mute = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(asked(None, mute).0.unwrap_err(), "status 403: it does not say why");
    }

    #[test]
    fn what_is_no_status_is_said_to_be_none() {
        let other = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}";
        assert!(asked(None, other).0.unwrap_err().contains("no status"));
        let old = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        assert!(asked(None, old).0.unwrap_err().contains("too old"));
        // It is asked at the daemon's own address only.
        let moved =
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(
            asked(None, moved).0.unwrap_err(),
            "status 302: it sends us elsewhere, where nothing is asked; give the address itself"
        );
    }

    #[test]
    fn a_name_cannot_act_on_the_terminal() {
        let mut text = "\u{1b}[2J\u{9b}31m\r\na\u{202e}b\u{e9}".to_owned();
        disarm(&mut text);
        assert_eq!(text, "\u{fffd}[2J\u{fffd}31m\u{fffd}\u{fffd}a\u{fffd}b\u{e9}");
    }

    #[test]
    fn what_is_no_http_url_is_refused_by_name() {
        for url in ["localhost:13333", "https://a", "http://", "http://user:secret@a"] {
            let Err(Failure::Usage(error)) = Daemon::at(url, None) else { panic!("{url}") };
            assert!(error.contains("http://HOST:PORT") && !error.contains("secret"), "{error}");
        }
        assert!(Daemon::at("http://127.0.0.1:13333/", None).is_ok());
    }
}
