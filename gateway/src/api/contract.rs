//! The contracts this API serves: OpenAPI for what is asked and answered, AsyncAPI for the frames of streams. Both are
//! kept by hand and held to the routes by tests.

use axum::Extension;
use axum::response::IntoResponse;
use daemon::serve::SharedBody;
use http::HeaderValue;
use http::header::CONTENT_TYPE;

pub(crate) async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, JSON)], Extension(SharedBody), OPENAPI)
}

pub(crate) async fn asyncapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, JSON)], Extension(SharedBody), ASYNCAPI)
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const OPENAPI: &str = include_str!("../openapi.json");
pub(crate) const ASYNCAPI: &str = include_str!("../asyncapi.json");
