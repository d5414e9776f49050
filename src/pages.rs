//! The pages, embedded in the binary, so that it serves them wherever it is put. Where the pages' npm packages were not
//! fetched before the build, every page says so and what to do.

use std::net::SocketAddr;

use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use daemon::serve::SharedBody;
use rust_embed::RustEmbed;

use crate::up;

/// Whether the map renderer was there when this binary was built.
pub fn has_packages() -> bool {
    Web::get("vendor/maplibre-gl.mjs").is_some()
}

/// `/` the dispatcher's map, `/t/{token}` the customer's page, `/drive` the driver's. Pages are told of the door with
/// TLS, because browsers tell their position only there.
pub fn router(https: Option<SocketAddr>) -> Router {
    let secure = secure_door(https);
    Router::new()
        .route("/assets/secure.json", get(move || async move { ([(CONTENT_TYPE, "application/json")], secure) }))
        .route("/", get(|| page("index.html")))
        .route("/t/{token}", get(|_: Path<String>| page("track.html")))
        .route("/drive", get(|| page("drive.html")))
        .route("/favicon.ico", get(|| async { file("assets/icon.svg", "max-age=86400") }))
        .route("/assets/{*path}", get(|Path(path): Path<String>| async move { file(&format!("assets/{path}"), SHORT) }))
        .route("/vendor/{*path}", get(|Path(path): Path<String>| async move { file(&format!("vendor/{path}"), LONG) }))
}

/// The address of the door with TLS as other machines reach it.
fn secure_door(https: Option<SocketAddr>) -> String {
    let urls = https.map(|address| up::addresses("https", address)).unwrap_or_default();
    serde_json::json!({"origin": urls.last()}).to_string()
}

async fn page(name: &'static str) -> Response {
    if has_packages() {
        return file(name, "no-cache");
    }
    (StatusCode::SERVICE_UNAVAILABLE, [(CONTENT_TYPE, "text/html; charset=utf-8")], NO_PACKAGES).into_response()
}

fn file(path: &str, cache: &'static str) -> Response {
    let Some(file) = Web::get(path) else {
        return (StatusCode::NOT_FOUND, "there is no such page\n").into_response();
    };
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, content_type(path)),
        (CACHE_CONTROL, cache),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Extension(SharedBody), file.data).into_response()
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

#[derive(RustEmbed)]
#[folder = "web/"]
#[include = "*.html"]
#[include = "assets/*"]
#[include = "vendor/*"]
#[exclude = "node_modules/*"]
struct Web;

/// Nothing from elsewhere; MapLibre makes its worker from our own files and draws images from blobs.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; worker-src 'self' blob:; \
    style-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'";
const SHORT: &str = "no-cache";
const LONG: &str = "public, max-age=86400";

const NO_PACKAGES: &str = "<!doctype html><meta charset=utf-8><title>Wayfix</title>\
    <body style='font:16px system-ui;max-width:36em;margin:4em auto'><h1>The server runs, its pages are not built in</h1>\
    <p>This binary was built before the pages' packages were fetched. Run <code>./x web</code> (it needs npm) and build \
    again, or start with <code>./x demo</code>, which does both. The API works as it is.";
