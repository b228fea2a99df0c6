//! Users, passwords, TLS and sockets.

use super::redis_support::{
    Certificates, ClusterServers, SentinelServers, Server, eventually, free_port,
};
use super::*;
use crate::ErrorKind;
use crate::index::redis::link::{Secret, WarningKind};

fn with(password: Secret) -> StoreOptions {
    StoreOptions { password: Some(password), ..options() }
}

/// Waits for a fault of another kind than "not connected yet".
async fn refusal(link: &Link) -> Fault {
    for _ in 0..2000 {
        match try_get(link, "a").await {
            Err(Fault::Down(why)) if why.contains("yet") => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(fault) => return fault,
            Ok(value) => panic!("it answered {value:?}"),
        }
    }
    panic!("never connected");
}

#[test]
fn a_wrong_or_missing_password_is_refused_with_what_to_do_and_never_shown() {
    let server = Server::with(&["--requirepass", "right horse"]).login(&["right horse"]);
    runtime().block_on(async {
        let link = open(&server.address(), with(Secret::new("hunter2")));
        let fault = refusal(&link).await;
        assert!(matches!(fault, Fault::Denied(_)), "{fault}");
        let text = format!("{fault} {fault:?} {link:?}");
        assert!(text.contains("WRONGPASS") && text.contains("password file"), "{fault}");
        assert!(!text.contains("hunter2"), "{text}");
        let error = crate::Error::from(fault);
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Denied, false));

        let link = open(&server.address(), options());
        let fault = refusal(&link).await;
        assert!(matches!(fault, Fault::Denied(_)), "{fault}");
        assert!(fault.to_string().contains("wants a password"), "{fault}");

        let file = server.directory().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        let link = open(&server.address(), with(Secret::file(&file)));
        assert!(matches!(refusal(&link).await, Fault::Denied(_)));
        std::fs::write(&file, "right horse\n").unwrap();
        until_ok("the file was put right", async || try_get(&link, "a").await).await;

        let link =
            ready(&format!("redis://:right%20horse@127.0.0.1:{}/3", server.port()), options())
                .await;
        try_set(&link, "only-in-3", "1").await.unwrap();
        assert_eq!(server.ask(&["EXISTS", "only-in-3"]), "0", "database 3 was chosen");
        assert!(!format!("{link:?}").contains("right horse"));
    });
}

#[test]
fn a_user_with_its_own_keys_and_commands_is_enough_and_what_it_lacks_is_warned_of() {
    let users = "user default on nopass ~* &* +@all\n\
                 user kv on >hunter2 ~kvscout:* resetchannels -@all +get +set +evalsha +eval +incrby \
                 +ping +script|load\n";
    let mut server = Server::prepare(&[]);
    let file = server.directory().join("users");
    std::fs::write(&file, users).unwrap();
    server.run_as(&["--aclfile", file.to_str().unwrap()]);
    runtime().block_on(async {
        let address = format!("redis://kv@127.0.0.1:{}", server.port());
        let link = ready(&address, with(Secret::new("hunter2"))).await;
        try_set(&link, "kvscout:1:a", "1").await.unwrap();
        let mut batch = Batch::new();
        batch.script(&DOUBLE, &[b"kvscout:1:a"], &[b"4"]);
        assert_eq!(link.send(batch).await.unwrap().remove(0).unwrap(), Value::Int(9));

        let fault = try_set(&link, "foreign", "1").await.unwrap_err();
        assert!(matches!(fault, Fault::Denied(_)), "{fault}");
        assert!(fault.to_string().contains("docs/redis.md"), "{fault}");

        let mut trials = Batch::new();
        get(&mut trials, "kvscout:1:trial");
        let mut delete = redis::cmd("UNLINK");
        delete.arg("kvscout:1:trial");
        trials.push(b"kvscout:1:trial", delete);
        let warnings = link.check(trials).await;
        let kinds: Vec<_> = warnings.iter().map(|w| w.kind).collect();
        use WarningKind::{Permission, Unknown};
        assert_eq!(kinds, [Unknown, Unknown, Permission], "{warnings:?}");
        assert!(warnings[2].text.contains("needs UNLINK"), "{}", warnings[2]);
        assert!(warnings[1].text.contains("noeviction"), "{}", warnings[1]);

        // Without the right to load scripts, their text goes along each time it is needed.
        server.ask(&["ACL", "SETUSER", "kv", "-script|load"]);
        server.ask(&["SCRIPT", "FLUSH"]);
        let link = ready(&address, with(Secret::new("hunter2"))).await;
        let mut batch = Batch::new();
        batch.script(&DOUBLE, &[b"kvscout:1:a"], &[b"1"]);
        assert_eq!(link.send(batch).await.unwrap().remove(0).unwrap(), Value::Int(11));
    });
}

#[test]
fn tls_checks_the_server_against_the_authority_that_is_given() {
    let mut server = Server::prepare(&[]);
    let certificates = Certificates::make(server.directory());
    let port = free_port();
    let arguments = certificates.arguments(port, false);
    server.run_as(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    runtime().block_on(async {
        let address = format!("rediss://127.0.0.1:{port}");
        let trusting = StoreOptions { tls_ca: Some(certificates.ca()), ..options() };
        let link = ready(&address, trusting.clone()).await;
        try_set(&link, "a", "1").await.unwrap();
        assert_eq!(server.ask(&["GET", "a"]), "1");

        // Another authority, or the machine's own.
        let other = Certificates::make(&server.directory().join("other"));
        let strict = StoreOptions { tls_ca: Some(other.ca()), ..options() };
        let link = open(&address, strict);
        let fault = refusal(&link).await;
        assert!(matches!(fault, Fault::Down(_)), "{fault}");
        assert!(fault.to_string().contains("tls_ca"), "{fault}");

        // TLS to a port without.
        let link = open(&format!("rediss://127.0.0.1:{}", server.port()), trusting);
        assert!(matches!(refusal(&link).await, Fault::Down(_)));
    });
}

#[test]
fn a_server_that_asks_for_a_certificate_gets_it() {
    let mut server = Server::prepare(&[]);
    let certificates = Certificates::make(server.directory());
    let port = free_port();
    let arguments = certificates.arguments(port, true);
    server.run_as(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    runtime().block_on(async {
        let address = format!("valkeys://localhost:{port}");
        let anonymous = StoreOptions { tls_ca: Some(certificates.ca()), ..options() };
        assert!(matches!(refusal(&open(&address, anonymous.clone())).await, Fault::Down(_)));
        let known = StoreOptions { tls_client: Some(certificates.server()), ..anonymous };
        let link = ready(&address, known).await;
        try_set(&link, "a", "1").await.unwrap();
    });
}

#[test]
fn a_cluster_with_tls_is_followed_over_tls_to_the_nodes_that_it_names() {
    let (mut servers, certificates) = ClusterServers::with_tls(3);
    let trusting = StoreOptions { tls_ca: Some(certificates.ca()), ..options() };
    let address = servers.address();
    assert!(address.starts_with("rediss+cluster://"), "{address}");
    runtime().block_on(async {
        // One node is enough to find the others, whose ports for TLS it has to name.
        let (one, _) = address.split_once(',').unwrap();
        let link = ready(one, trusting).await;
        assert_eq!((link.counters().servers, link.counters().servers_ready), (3, 3));
        for n in 0..60 {
            try_set(&link, &format!("k{n}"), "1").await.unwrap();
        }
        let sizes: Vec<_> = servers.nodes.iter().map(|node| node.ask(&["DBSIZE"])).collect();
        assert!(sizes.iter().all(|size| size.parse::<u32>().unwrap() > 5), "{sizes:?}");

        // A node that was lost is found again.
        servers.nodes[1].kill();
        eventually("the loss is noticed", || link.counters().servers_ready == 2);
        servers.nodes[1].restart();
        until_ok("it is back", async || {
            for n in 0..60 {
                try_set(&link, &format!("k{n}"), "2").await?;
            }
            Ok(())
        })
        .await;

        // Who does not trust the authority gets nowhere.
        let other = Certificates::make(&servers.nodes[0].directory().join("other"));
        let strict = StoreOptions { tls_ca: Some(other.ca()), ..options() };
        let fault = open(&address, strict).ready(Duration::from_secs(2)).await.unwrap_err();
        assert!(matches!(fault, Fault::Down(_)), "{fault}");
    });
}

#[test]
fn sentinels_with_tls_name_the_next_master_over_tls() {
    let (mut servers, certificates) = SentinelServers::with_tls();
    let trusting = StoreOptions { tls_ca: Some(certificates.ca()), ..options() };
    let address = servers.address();
    assert!(address.starts_with("rediss+sentinel://"), "{address}");
    runtime().block_on(async {
        let link = ready(&address, trusting).await;
        try_set(&link, "a", "1").await.unwrap();
        assert_eq!(servers.master.ask(&["GET", "a"]), "1");
        servers.master.kill();
        until_ok("another master is chosen", async || try_set(&link, "b", "2").await).await;
        assert_eq!(servers.replica.ask(&["GET", "b"]), "2");

        // TLS asked of sentinels' ports without.
        let plain: Vec<_> =
            servers.sentinels.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let address = format!("rediss+sentinel://{}/main", plain.join(","));
        let anonymous = StoreOptions { tls_ca: Some(certificates.ca()), ..options() };
        let fault = open(&address, anonymous).ready(Duration::from_secs(2)).await.unwrap_err();
        assert!(matches!(fault, Fault::Down(_)), "{fault}");
    });
}

#[test]
fn a_unix_socket_works_like_a_port() {
    let server = Server::start();
    runtime().block_on(async {
        let address = format!("unix:{}?db=2", server.socket().display());
        let link = ready(&address, options()).await;
        try_set(&link, "a", "1").await.unwrap();
        assert_eq!(server.ask(&["EXISTS", "a"]), "0");
        assert_eq!(try_get(&link, "a").await.unwrap(), bytes("1"));
        let link = open("unix:/nonexistent/socket", options());
        let fault = refusal(&link).await;
        assert!(fault.to_string().contains("/nonexistent/socket"), "{fault}");
    });
}
