//! One command is one trace over three programs.

use integration_tests::host::TestHost;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};
use tonic::{Request, Response, Status, transport::Server};

/// Services by trace id.
type Traces = Arc<Mutex<BTreeMap<Vec<u8>, BTreeSet<String>>>>;

/// A collector that notes which services take part in which trace.
struct Collector(Traces);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|r| r.attributes).unwrap_or_default();
            let name = attributes.into_iter().find(|a| a.key == "service.name").and_then(|a| a.value?.value);
            let Some(Value::StringValue(service)) = name else { continue };
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.lock().expect("traces").entry(span.trace_id).or_default().insert(service.clone());
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[test]
fn one_trace_spans_kvmctl_vmd_and_netd() {
    let traces = Traces::default();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let mut host = TestHost::bare();
    // The collector listens where the daemons live; kvmctl, outside, is let in by a namespace's own loopback.
    let listener = host.netns.enter(|| std::net::TcpListener::bind("127.0.0.1:0").expect("listen"));
    listener.set_nonblocking(true).expect("socket");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    let collector = TraceServiceServer::new(Collector(Arc::clone(&traces)));
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        Server::builder().add_service(collector).serve_with_incoming(incoming).await
    });
    host.environment = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT".into(), endpoint),
        // Spans leave at once, not every five seconds.
        ("OTEL_BSP_SCHEDULE_DELAY".into(), "50".into()),
    ];
    host.start_netd();
    host.add_vmd();
    host.ok("network create n --mode isolated");
    let mut command = host.netns.command(&host.path("kvmctl"));
    command
        .args(["vm", "run", "traced", "--network", "n"])
        .args(["--netd", &host.netd_address(), "--vmd", &host.vmd_address()])
        .envs(host.environment.iter().map(|(k, v)| (k, v)));
    integration_tests::netns::run(&mut command);
    let all: BTreeSet<String> = ["kvmctl", "vmd", "netd"].map(str::to_owned).into();
    integration_tests::wait::until("a trace over three services", || {
        traces.lock().expect("traces").values().any(|services| *services == all).then_some(())
    });
    host.ok("vm stop traced --force");
}
