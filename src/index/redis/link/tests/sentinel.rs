//! A master that sentinels replace.

use super::redis_support::SentinelServers;
use super::*;

#[test]
fn writes_go_on_at_the_master_that_the_sentinels_chose() {
    let mut servers = SentinelServers::start();
    runtime().block_on(async {
        let link = ready(&servers.address(), options()).await;
        try_set(&link, "a", "1").await.unwrap();
        assert_eq!(servers.master.ask(&["GET", "a"]), "1");
        servers.sentinels[0].kill();
        servers.master.kill();
        let value = std::cell::Cell::new(0);
        until_ok("another master is chosen", async || {
            value.set(value.get() + 1);
            try_set(&link, "a", &value.get().to_string()).await
        })
        .await;
        assert_eq!(servers.replica.ask(&["GET", "a"]), value.get().to_string());

        // The old master comes back as one, and is made a replica of the new one.
        servers.master.restart();
        try_set(&link, "b", "2").await.unwrap();
        assert_eq!(servers.replica.ask(&["GET", "b"]), "2");
        assert_eq!(link.counters().servers, 1);
    });
}

#[test]
fn a_failover_by_hand_moves_writes_although_the_old_master_lives_on() {
    let servers = SentinelServers::start();
    runtime().block_on(async {
        let link = ready(&servers.address(), options()).await;
        try_set(&link, "a", "1").await.unwrap();
        assert_eq!(servers.sentinels[0].ask(&["SENTINEL", "FAILOVER", "main"]), "OK");
        super::redis_support::eventually("the replica is the master", || {
            // Sentinels cut a server's clients when they change its role.
            servers.replica.try_ask(&["ROLE"]).is_ok_and(|role| role.starts_with("master"))
        });
        until_ok("the write arrives", async || {
            try_set(&link, "after", "1").await?;
            let arrived = servers.replica.try_ask(&["EXISTS", "after"]);
            if arrived.is_ok_and(|exists| exists == "1") {
                Ok(())
            } else {
                Err(Fault::Down("it is at the old master".into()))
            }
        })
        .await;
    });
}

#[test]
fn a_name_that_no_sentinel_knows_is_named() {
    let servers = SentinelServers::start();
    runtime().block_on(async {
        let address = servers.address().replace("/main", "/mian");
        let fault = open(&address, options()).ready(Duration::from_secs(1)).await.unwrap_err();
        assert!(fault.to_string().contains("\"mian\""), "{fault}");
    });
}
