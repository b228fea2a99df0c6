//! Connections over which HTTP is spoken.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::RETRY_AFTER;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tower_service::Service;
use tracing::trace;

use crate::ending::Ending;
use crate::listen::{Connection, Listener};

/// How long a connection for which there was no place may rest.
const CROWDED: Duration = Duration::from_secs(1);

/// For so long a connection that was refused is not listened to: whoever asks again at once would cost as much as those
/// who are answered, and whoever comes back when `retry-after` says does not notice.
const REFUSED: Duration = Duration::from_millis(10);

/// A request that came before that was over. It is refused, too: it is no longer worth an answer, and the next one may
/// be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Insists;

/// Serves until the end begins, then lets requests in flight end. A connection may rest for `idle`, and the head of a
/// request may take as long.
pub(crate) async fn serve(
    listener: Listener,
    router: Router,
    idle: Duration,
    ending: Ending,
) -> io::Result<()> {
    let mut accepted = listener.connections();
    let mut spoken = JoinSet::new();
    loop {
        tokio::select! {
            () = ending.begins() => break,
            connection = accepted.recv() => match connection {
                Some(connection) => {
                    spoken.spawn(speak(connection?, router.clone(), idle, ending.clone()));
                }
                None => break,
            },
            Some(_) = spoken.join_next() => {}
        }
    }
    drop(accepted);
    while spoken.join_next().await.is_some() {}
    Ok(())
}

async fn speak(connection: Connection, router: Router, idle: Duration, ending: Ending) {
    let peer = connection.peer().clone();
    let rest = if peer.is_crowded() { CROWDED } else { idle };
    let refused = Arc::new(Mutex::new(None::<Instant>));
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let (mut router, refused) = (router.clone(), Arc::clone(&refused));
        async move {
            let again = refused.lock().take().map(|since| since + REFUSED);
            let insists = again.is_some_and(|again| Instant::now() < again);
            if let Some(again) = again.filter(|_| insists) {
                request.extensions_mut().insert(Insists);
                sleep_until(again).await;
            }
            let Ok(response) = router.call(request.map(Body::new)).await;
            if response.headers().contains_key(RETRY_AFTER) && !insists {
                *refused.lock() = Some(Instant::now());
            }
            Ok::<Response, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    let builder = builder.timer(TokioTimer::new()).header_read_timeout(rest);
    let mut spoken = pin!(builder.serve_connection(TokioIo::new(connection), answer));
    let ended = tokio::select! {
        ended = spoken.as_mut() => ended,
        () = ending.begins() => {
            spoken.as_mut().graceful_shutdown();
            spoken.await
        }
    };
    // A client that goes away amid something is its own business.
    let _ = ended.inspect_err(|error| trace!(%error, "a connection ended"));
}
