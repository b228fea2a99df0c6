//! A certificate authority and a server certificate, made by the `openssl` command.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files of an authority and of a server at 127.0.0.1.
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    pub fn make(directory: &Path) -> Certificates {
        let directory = directory.join("tls");
        std::fs::create_dir_all(&directory).unwrap();
        let made = Certificates { directory };
        std::fs::write(made.file("ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        let (ca, ca_key, key) = (made.text("ca.crt"), made.text("ca.key"), made.text("server.key"));
        let (request, certificate, ext) =
            (made.text("server.csr"), made.text("server.crt"), made.text("ext"));
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        openssl(
            &["req", "-x509", "-days", "2", "-subj", "/CN=test authority"],
            &new_key,
            &["-keyout", &ca_key, "-out", &ca],
        );
        openssl(&["req", "-subj", "/CN=localhost"], &new_key, &["-keyout", &key, "-out", &request]);
        openssl(
            &["x509", "-req", "-days", "2", "-CAcreateserial", "-in", &request],
            &[],
            &["-CA", &ca, "-CAkey", &ca_key, "-extfile", &ext, "-out", &certificate],
        );
        made
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    pub fn ca(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// The server's certificate and key, which do as a client's too.
    pub fn server(&self) -> (PathBuf, PathBuf) {
        (self.file("server.crt"), self.file("server.key"))
    }

    /// Arguments for a server that speaks TLS on this port, and plain text on its usual one.
    pub fn arguments(&self, port: u16, ask_clients: bool) -> Vec<String> {
        let clients = if ask_clients { "yes" } else { "no" };
        let words = [
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &self.text("server.crt"),
            "--tls-key-file",
            &self.text("server.key"),
            "--tls-ca-cert-file",
            &self.text("ca.crt"),
            "--tls-auth-clients",
            clients,
        ];
        words.map(str::to_owned).to_vec()
    }
}

fn openssl(first: &[&str], middle: &[&str], last: &[&str]) {
    let output = Command::new("openssl")
        .args(first)
        .args(middle)
        .args(last)
        .stdin(Stdio::null())
        .output()
        .expect("the openssl command makes the tests' certificates");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
