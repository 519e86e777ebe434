//! dockerd's end: HTTP on a unix socket, each request a POST with JSON.
//!
//! dockerd gives Mount and Create up after 120 seconds and the rest after 60, and then never mentions them again. So each request
//! has a shorter limit here, and a Mount whose answer nobody waits for any more is undone when it is done. A connection that
//! broke is tried again by dockerd *without* the request's body; such a request says nothing, and is refused.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::driver::Driver;
use crate::error::Error;
use crate::options;
use crate::protocol::{Capabilities, Request, Response};

/// A request has a name and a few options.
const MAX_BODY_BYTES: usize = 1 << 20;
/// For what dockerd gives 120 seconds.
const LONG_LIMIT: Duration = Duration::from_secs(110);
/// For what it gives 60 seconds.
const SHORT_LIMIT: Duration = Duration::from_secs(55);
/// What dockerd asks for, and what it is answered with.
const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.1+json";

/// Listens on `path`, for this user alone.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until `stop` is true; then requests under way are finished.
pub async fn serve(driver: Arc<Driver>, listener: UnixListener, stop: watch::Receiver<bool>) {
    let mut stopped = pin!(stopped(stop.clone()));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(driver.clone(), stream, stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept dockerd's connection");
                    // Out of descriptors, most likely: others must end first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stopped.as_mut() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Returns when `stop` is true, or nobody is left to say so.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(driver: Arc<Driver>, stream: UnixStream, stop: watch::Receiver<bool>) {
    let service = service_fn(|request| answer(driver.clone(), request));
    let mut connection =
        pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    let mut stopped = pin!(stopped(stop));
    let ended = tokio::select! {
        result = connection.as_mut() => Some(result),
        () = stopped.as_mut() => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn answer(
    driver: Arc<Driver>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let (status, response) = match dispatch(driver, request).await {
        Ok(response) => (StatusCode::OK, response),
        Err((status, err)) => {
            tracing::warn!(path, error = err, "refused");
            let response = Response {
                err,
                ..Response::default()
            };
            (status, response)
        }
    };
    let body = serde_json::to_vec(&response).expect("answers have a JSON form");
    let answer = hyper::Response::builder()
        .status(status)
        .header("content-type", CONTENT_TYPE)
        .body(Full::new(body.into()))
        .expect("a status and a header that are valid");
    Ok(answer)
}

type Refusal = (StatusCode, String);

fn refusal(error: Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

async fn dispatch(
    driver: Arc<Driver>,
    request: hyper::Request<Incoming>,
) -> Result<Response, Refusal> {
    if request.method() != Method::POST {
        return Err((
            StatusCode::METHOD_NOT_ALLOWED,
            "plugin requests are POSTs".to_owned(),
        ));
    }
    let path = request.uri().path().to_owned();
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES)
        .collect()
        .await;
    let body = body.map_err(|error| {
        (
            StatusCode::BAD_REQUEST,
            format!("the request's body: {error}"),
        )
    })?;
    let body = body.to_bytes();
    let read = || -> Result<Request, Refusal> {
        if body.is_empty() {
            let what = "the request is empty: dockerd lost its connection to nvmf-docker and tried again without the request; \
                        repeat the command";
            return Err((StatusCode::BAD_REQUEST, what.to_owned()));
        }
        serde_json::from_slice(&body).map_err(|error| {
            (
                StatusCode::BAD_REQUEST,
                format!("the request's body: {error}"),
            )
        })
    };
    match path.as_str() {
        "/Plugin.Activate" => {
            blocking(SHORT_LIMIT, move || driver.activate()).await?;
            Ok(Response {
                implements: Some(vec!["VolumeDriver"]),
                ..Response::default()
            })
        }
        "/VolumeDriver.Capabilities" => Ok(Response {
            capabilities: Some(Capabilities { scope: "local" }),
            ..Response::default()
        }),
        "/VolumeDriver.Create" => {
            let Request { name, opts, .. } = read()?;
            blocking(LONG_LIMIT, move || {
                driver.create(&name, &opts.unwrap_or_default())
            })
            .await?;
            Ok(Response::default())
        }
        "/VolumeDriver.Remove" => {
            let Request { name, .. } = read()?;
            blocking(SHORT_LIMIT, move || driver.remove(&name)).await?;
            Ok(Response::default())
        }
        "/VolumeDriver.Mount" => {
            let Request { name, id, .. } = read()?;
            let at = mount(driver, name, id).await?;
            Ok(Response {
                mountpoint: Some(at),
                ..Response::default()
            })
        }
        "/VolumeDriver.Unmount" => {
            let Request { name, id, .. } = read()?;
            blocking(SHORT_LIMIT, move || driver.unmount(&name, &id)).await?;
            Ok(Response::default())
        }
        "/VolumeDriver.Get" => {
            let Request { name, .. } = read()?;
            let volume = driver.get(&name).map_err(refusal)?;
            Ok(Response {
                volume: Some(volume),
                ..Response::default()
            })
        }
        "/VolumeDriver.Path" => {
            let Request { name, .. } = read()?;
            let volume = driver.get(&name).map_err(refusal)?;
            Ok(Response {
                mountpoint: Some(volume.mountpoint),
                ..Response::default()
            })
        }
        "/VolumeDriver.List" => Ok(Response {
            volumes: Some(driver.list()),
            ..Response::default()
        }),
        GROW => {
            let Request { name, size, .. } = read()?;
            let size_bytes = options::parse_size(&size).map_err(refusal)?;
            blocking(LONG_LIMIT, move || driver.grow(&name, size_bytes)).await?;
            Ok(Response::default())
        }
        other => Err((
            StatusCode::NOT_FOUND,
            format!("{other} is no request of the volume plugin protocol"),
        )),
    }
}

/// Our own request, which Docker has no command for.
pub const GROW: &str = "/NvmfDriver.Grow";

/// Runs what blocks. What takes longer than the limit goes on, and finds out for itself what became of it when it is asked again.
async fn blocking<R: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<R, Error> + Send + 'static,
) -> Result<R, Refusal> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result.map_err(refusal),
        Ok(Err(panic)) => Err((
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("nvmf-docker failed: {panic}"),
        )),
        Err(_) => Err(too_long(limit)),
    }
}

fn too_long(limit: Duration) -> Refusal {
    let what = format!(
        "not done within {} s, and still going on: the target may be unreachable, or a file system is being checked; the log of \
         nvmf-docker says more. Try again later",
        limit.as_secs()
    );
    (StatusCode::INTERNAL_SERVER_ERROR, what)
}

/// A Mount that is undone unless its result is taken: dockerd never unmounts what it has given up.
async fn mount(driver: Arc<Driver>, name: String, id: String) -> Result<String, Refusal> {
    struct Undo {
        driver: Arc<Driver>,
        name: String,
        id: String,
        work: Option<JoinHandle<Result<std::path::PathBuf, Error>>>,
    }
    impl Drop for Undo {
        fn drop(&mut self) {
            let Some(work) = self.work.take() else {
                return;
            };
            let (driver, name, id) = (self.driver.clone(), self.name.clone(), self.id.clone());
            tokio::spawn(async move {
                if !matches!(work.await, Ok(Ok(_))) {
                    return;
                }
                tracing::warn!(
                    name,
                    id,
                    "mounted, but nobody waits for it any more: undone"
                );
                let undone = tokio::task::spawn_blocking(move || driver.unmount(&name, &id)).await;
                if let Ok(Err(error)) = undone {
                    tracing::warn!(%error, "cannot undo a mount; it is tried again");
                }
            });
        }
    }
    let (for_work, name_for_work, id_for_work) = (driver.clone(), name.clone(), id.clone());
    let work = tokio::task::spawn_blocking(move || for_work.mount(&name_for_work, &id_for_work));
    let mut undo = Undo {
        driver,
        name,
        id,
        work: Some(work),
    };
    let work = undo.work.as_mut().expect("set above");
    let Ok(result) = tokio::time::timeout(LONG_LIMIT, work).await else {
        return Err(too_long(LONG_LIMIT));
    };
    undo.work = None;
    match result {
        Ok(Ok(at)) => Ok(at.to_string_lossy().into_owned()),
        Ok(Err(error)) => Err(refusal(error)),
        Err(panic) => Err((
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("nvmf-docker failed: {panic}"),
        )),
    }
}
