//! Logs on stderr, and spans to an OTLP collector where one is configured.
//!
//! W3C `traceparent` travels in gRPC metadata: `server_span` reads it, `Inject` writes it.

use crate::fault::{Fault, Kind};
use opentelemetry::{
    global,
    propagation::{Extractor, Injector},
    trace::{TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use std::time::Duration;
use tonic::{
    metadata::{MetadataKey, MetadataMap},
    service::Interceptor,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How long the last spans may take to leave.
const FLUSH: Duration = Duration::from_secs(1);
/// Exporting must not make spans about itself.
const SPANS: &str = "info,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off,opentelemetry=off";

/// Telemetry of this process; `finish` sends what is left.
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

/// Starts logging (filter in `KVMCTL_LOG`, `default_filter` otherwise) and, when `OTEL_EXPORTER_OTLP_ENDPOINT` or
/// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set, exporting.
///
/// # Errors
/// INVALID_ARGUMENT if the endpoint cannot be used.
pub fn start(service: &'static str, default_filter: &str) -> Result<Telemetry, Fault> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let filter = EnvFilter::try_from_env("KVMCTL_LOG").unwrap_or_else(|_| EnvFilter::new(default_filter));
    let logs =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).with_filter(filter);
    let provider = exporter(service)?;
    // Without an exporter the layer still makes ids, so that errors can show a trace id.
    let tracer = provider.clone().unwrap_or_else(|| SdkTracerProvider::builder().build()).tracer(service);
    let spans = tracing_opentelemetry::layer().with_tracer(tracer).with_filter(EnvFilter::new(SPANS));
    tracing_subscriber::registry().with(logs).with(spans).init();
    Ok(Telemetry(provider))
}

fn exporter(service: &'static str) -> Result<Option<SdkTracerProvider>, Fault> {
    let configured = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
        .iter()
        .any(|key| std::env::var_os(key).is_some_and(|value| !value.is_empty()));
    if !configured {
        return Ok(None);
    }
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_timeout(FLUSH).build().map_err(
            |error| {
                Fault::new(Kind::InvalidArgument, "OTLP", "cannot export spans")
                    .cause(&error)
                    .hint("check OTEL_EXPORTER_OTLP_ENDPOINT, http://127.0.0.1:4317 for example")
            },
        )?;
    let resource = Resource::builder().with_service_name(service).build();
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
}

impl Telemetry {
    /// Sends the spans that are left; blocks for at most a second.
    pub async fn finish(self) {
        if let Some(provider) = self.0 {
            let _ = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH)).await;
        }
    }
}

/// The span of one gRPC call, a child of the caller's.
pub fn server_span(request: &http::Request<()>) -> Span {
    let span = tracing::info_span!("rpc", otel.name = request.uri().path(), otel.kind = "server");
    let parent = global::get_text_map_propagator(|p| p.extract(&Headers(request.headers())));
    // Fails only where no OpenTelemetry layer is installed, as in unit tests.
    let _ = span.set_parent(parent);
    span
}

/// The trace id of the present span, 32 hexadecimal digits; `None` outside of a trace.
#[must_use]
pub fn trace_id() -> Option<String> {
    let context = Span::current().context();
    let span = context.span();
    let id = span.span_context();
    id.is_valid().then(|| id.trace_id().to_string())
}

/// Puts the present span's context into each outgoing call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inject;

impl Interceptor for Inject {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let context = Span::current().context();
        global::get_text_map_propagator(|p| {
            p.inject_context(&context, &mut Metadata(request.metadata_mut()))
        });
        Ok(request)
    }
}

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }
    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}
