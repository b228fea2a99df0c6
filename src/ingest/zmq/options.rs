//! The knobs of the transport and their bounds.

use std::time::Duration;

use crate::Error;

/// Below this the limit would also refuse libzmq's own handshake (zeromq/libzmq#4436).
const MIN_MESSAGE_BYTES: u64 = 276;

/// The heartbeat's time to live travels as 16 bits of tenths of a second (ZMTP 3.1).
const MAX_HEARTBEAT_TTL: Duration = Duration::from_millis(6_553_500);

/// How every source's socket is set up. The same for all sources of a receiver.
///
/// ```
/// use kvscout::ingest::zmq::Options;
///
/// let options = Options { topic: b"kv-events".to_vec(), ..Options::default() };
/// assert_eq!(options.max_message_bytes, 4 << 20);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Largest message accepted, all frames together. 4 MiB: a scheduler step that stores 128 Ki
    /// tokens in blocks of 16 is a message of about 1 MiB, one that stores 64 Ki tokens in blocks
    /// of one token about 3 MiB. At least 276.
    ///
    /// A connection that goes beyond it is cut, so this also bounds what a hostile peer can make
    /// libzmq hold: 32 times as much (see the [module](super)).
    pub max_message_bytes: u64,
    /// Messages of one connection that may wait while the sink is busy. 256: enough that libzmq's
    /// thread and ours do not wait for each other. Beyond it TCP holds the publisher back, whose
    /// own queue (vLLM: 100,000) is the place to wait.
    pub receive_hwm: u32,
    /// How often an idle connection is asked for a sign of life; `None` never asks. 5 s.
    ///
    /// Only this finds a pod that vanished without closing its connection (node failure, network
    /// partition) in less than TCP's many minutes. The answer comes from libzmq's thread in the
    /// engine, so a busy Python interpreter does not delay it.
    pub heartbeat_interval: Option<Duration>,
    /// How long the answer may take before the connection is given up and dialled again. 10 s.
    pub heartbeat_timeout: Duration,
    /// How long the publisher waits for our next sign of life before it gives the connection up;
    /// zero leaves that to the publisher. 15 s: interval and timeout together.
    pub heartbeat_ttl: Duration,
    /// Idle time after which TCP itself probes the peer, then every 10 s, three times; `None`
    /// leaves the system's setting. 60 s, for the publishers that answer no heartbeat and to keep
    /// NAT entries alive.
    pub tcp_keepalive: Option<Duration>,
    /// First wait before a lost or refused connection is dialled again; doubles each time. 100 ms.
    pub reconnect_interval: Duration,
    /// Longest such wait. 5 s, which is how late a restarted pod is found at worst.
    pub reconnect_max: Duration,
    /// Subscription: only topics that start with these bytes. Empty: all, vLLM's default topic
    /// being empty.
    pub topic: Vec<u8>,
    /// Connections that one bound endpoint holds at a time; further ones are cut at once. 1024.
    pub max_connections: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_message_bytes: 4 << 20,
            receive_hwm: 256,
            heartbeat_interval: Some(Duration::from_secs(5)),
            heartbeat_timeout: Duration::from_secs(10),
            heartbeat_ttl: Duration::from_secs(15),
            tcp_keepalive: Some(Duration::from_secs(60)),
            reconnect_interval: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
            topic: Vec::new(),
            max_connections: 1024,
        }
    }
}

impl Options {
    /// What libzmq would silently misunderstand is refused here.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.max_message_bytes < MIN_MESSAGE_BYTES
            || i64::try_from(self.max_message_bytes).is_err()
        {
            return Err(Error::invalid(format!(
                "max_message_bytes {} is out of range; {MIN_MESSAGE_BYTES} is the least that lets \
                 the handshake through",
                self.max_message_bytes
            )));
        }
        if self.receive_hwm == 0 || i32::try_from(self.receive_hwm).is_err() {
            return Err(Error::invalid(format!(
                "receive_hwm {} is out of range; at least 1 (0 would mean no limit)",
                self.receive_hwm
            )));
        }
        if self.max_connections == 0 {
            return Err(Error::invalid("max_connections 0 admits nobody; at least 1"));
        }
        let positive = [
            ("heartbeat_interval", self.heartbeat_interval),
            ("heartbeat_timeout", self.heartbeat_interval.map(|_| self.heartbeat_timeout)),
            ("tcp_keepalive", self.tcp_keepalive),
            ("reconnect_interval", Some(self.reconnect_interval)),
            ("reconnect_max", Some(self.reconnect_max)),
        ];
        for (name, value) in positive {
            if value
                .is_some_and(|value| value < Duration::from_millis(1) || millis(value) == i32::MAX)
            {
                return Err(Error::invalid(format!(
                    "{name} {:?} is out of range; between 1 ms and 24 days",
                    value.unwrap_or_default()
                )));
            }
        }
        if self.tcp_keepalive.is_some_and(|idle| idle < Duration::from_secs(1)) {
            return Err(Error::invalid("tcp_keepalive is counted in seconds; at least 1 s"));
        }
        if self.heartbeat_ttl > MAX_HEARTBEAT_TTL {
            return Err(Error::invalid(format!(
                "heartbeat_ttl {:?} does not fit the protocol; at most 6553.5 s",
                self.heartbeat_ttl
            )));
        }
        if self.reconnect_max < self.reconnect_interval {
            return Err(Error::invalid(format!(
                "reconnect_max {:?} is below reconnect_interval {:?}",
                self.reconnect_max, self.reconnect_interval
            )));
        }
        Ok(())
    }

    pub(super) fn apply(&self, socket: &zmq::Socket) -> zmq::Result<()> {
        // Off by default: an IPv6 endpoint would then connect to nothing, without an error.
        socket.set_ipv6(true)?;
        // A closing socket has nothing of ours to send; waiting would delay every removal.
        socket.set_linger(0)?;
        socket.set_maxmsgsize(i64::try_from(self.max_message_bytes).unwrap_or(i64::MAX))?;
        socket.set_rcvhwm(i32::try_from(self.receive_hwm).unwrap_or(i32::MAX))?;
        socket.set_reconnect_ivl(millis(self.reconnect_interval))?;
        socket.set_reconnect_ivl_max(millis(self.reconnect_max))?;
        // The system's own patience with an address that answers nothing is about two minutes,
        // longer than a deleted pod's address stays unused.
        socket.set_connect_timeout(millis(self.reconnect_max.max(Duration::from_secs(5))))?;
        if let Some(interval) = self.heartbeat_interval {
            socket.set_heartbeat_ivl(millis(interval))?;
            socket.set_heartbeat_timeout(millis(self.heartbeat_timeout))?;
            socket.set_heartbeat_ttl(millis(self.heartbeat_ttl))?;
        }
        if let Some(idle) = self.tcp_keepalive {
            socket.set_tcp_keepalive(1)?;
            socket.set_tcp_keepalive_idle(i32::try_from(idle.as_secs()).unwrap_or(i32::MAX))?;
            socket.set_tcp_keepalive_intvl(10)?;
            socket.set_tcp_keepalive_cnt(3)?;
        }
        socket.set_subscribe(&self.topic)
    }
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_libzmq_takes_them() {
        let options = Options::default();
        options.check().unwrap();
        let socket = zmq::Context::new().socket(zmq::SUB).unwrap();
        options.apply(&socket).unwrap();
        assert_eq!(socket.get_maxmsgsize().unwrap(), 4 << 20);
        assert_eq!(socket.get_heartbeat_ttl().unwrap(), 15_000);
    }

    #[test]
    fn values_that_libzmq_would_misread_are_refused() {
        let d = Options::default;
        let ms = Duration::from_millis;
        for options in [
            Options { max_message_bytes: 275, ..d() },
            Options { max_message_bytes: u64::MAX, ..d() },
            Options { receive_hwm: 0, ..d() },
            Options { receive_hwm: u32::MAX, ..d() },
            Options { max_connections: 0, ..d() },
            Options { heartbeat_interval: Some(ms(0)), ..d() },
            Options { heartbeat_timeout: ms(0), ..d() },
            Options { heartbeat_ttl: ms(6_553_600), ..d() },
            Options { tcp_keepalive: Some(ms(500)), ..d() },
            Options { reconnect_interval: ms(0), ..d() },
            Options { reconnect_max: ms(99), ..d() },
            Options { reconnect_max: Duration::MAX, ..d() },
        ] {
            assert!(options.check().is_err(), "{options:?}");
        }
        Options { max_message_bytes: 276, heartbeat_interval: None, ..d() }.check().unwrap();
    }
}
