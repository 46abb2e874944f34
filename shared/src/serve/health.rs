//! `grpc.health.v1`: whether the daemon can make changes. A daemon that only reads on is no healthy one, and a monitor
//! does not find it by reading.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, pb::health_server, server::HealthReporter};

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(1);
/// A look that takes longer is bad news by itself: the file system hangs.
const PATIENCE: Duration = Duration::from_secs(5);

type Look = dyn Fn() -> Option<String> + Send + Sync;

/// What the health service tells.
pub struct Health {
    /// The services by name, and whether one of their calls changes anything.
    services: BTreeMap<String, bool>,
    /// Why changes cannot be made.
    look: Arc<Look>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("services", &self.services).finish_non_exhaustive()
    }
}

impl Health {
    /// The services of these `methods`, a path each and whether the call changes something. `look` says why changes
    /// cannot be made, and may block.
    pub fn new<'a>(
        methods: impl IntoIterator<Item = (&'a str, bool)>,
        look: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let mut services = BTreeMap::new();
        for (path, changes) in methods {
            let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
            *services.entry(service.to_owned()).or_insert(false) |= changes;
        }
        Self { services, look: Arc::new(look) }
    }

    /// The service, kept up until `stop`, when nothing is served any more.
    pub(super) async fn begin(self, stop: CancellationToken) -> impl health_server::Health {
        let reporter = HealthReporter::new();
        let mut last = true;
        self.tell(&reporter, last).await;
        let service = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
        tokio::spawn(async move {
            let mut looking: Option<JoinHandle<Option<String>>> = None;
            loop {
                let look = Arc::clone(&self.look);
                // One at a time, or each second one more thread would hang.
                let task = looking.get_or_insert_with(|| spawn_blocking(move || look()));
                let trouble = tokio::select! {
                    trouble = tokio::time::timeout(PATIENCE, &mut *task) => trouble,
                    () = stop.cancelled() => break,
                };
                let trouble = match trouble {
                    Ok(done) => {
                        looking = None;
                        done.unwrap_or_else(|defect| Some(defect.to_string()))
                    }
                    Err(_) => Some("the file system of the state does not answer".to_owned()),
                };
                let serving = trouble.is_none();
                if serving != last {
                    match trouble {
                        Some(why) => tracing::error!(why, "not healthy"),
                        None => tracing::info!("healthy again"),
                    }
                    last = serving;
                    self.tell(&reporter, serving).await;
                }
                tokio::select! {
                    () = tokio::time::sleep(PERIOD) => {}
                    () = stop.cancelled() => break,
                }
            }
            for service in self.services.keys().map(String::as_str).chain([""]) {
                reporter.set_service_status(service, ServingStatus::NotServing).await;
            }
        });
        service
    }

    /// Those who watch are told of each call of this, so there is one only where something changed.
    async fn tell(&self, reporter: &HealthReporter, able: bool) {
        for (service, changes) in
            self.services.iter().map(|(name, changes)| (name.as_str(), *changes)).chain([("", true)])
        {
            let status = if able || !changes { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status(service, status).await;
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use futures_util::StreamExt as _;
    use std::sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    };
    use tonic::{Code, Request};
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus as Wire, health_server::Health as _,
    };

    const METHODS: [(&str, bool); 3] =
        [("/a.v1.Changing/Get", false), ("/a.v1.Changing/Create", true), ("/a.v1.Reading/Get", false)];

    fn of(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    async fn status(service: &impl health_server::Health, name: &str) -> Wire {
        service.check(of(name)).await.unwrap().into_inner().status()
    }

    /// No socket, so that the clock can stand still.
    #[tokio::test(start_paused = true)]
    async fn changes_that_cannot_be_made_are_told_and_so_is_that_they_can_again() {
        let able = Arc::new(AtomicBool::new(true));
        let health = Health::new(METHODS, {
            let able = Arc::clone(&able);
            move || (!able.load(Ordering::SeqCst)).then(|| "the disk is full".to_owned())
        });
        let stop = CancellationToken::new();
        let service = health.begin(stop.clone()).await;
        let mut watch = Box::pin(service.watch(of("")).await.unwrap().into_inner());
        let mut next = async || watch.next().await.unwrap().unwrap().status();
        assert_eq!(next().await, Wire::Serving);
        assert_eq!(service.check(of("b.v1.Other")).await.unwrap_err().code(), Code::NotFound);
        for _ in 0..3 {
            able.store(false, Ordering::SeqCst);
            assert_eq!(next().await, Wire::NotServing);
            assert_eq!(status(&service, "a.v1.Changing").await, Wire::NotServing);
            assert_eq!(status(&service, "a.v1.Reading").await, Wire::Serving);
            able.store(true, Ordering::SeqCst);
            assert_eq!(next().await, Wire::Serving);
            assert_eq!(status(&service, "a.v1.Changing").await, Wire::Serving);
        }
        stop.cancel();
        assert_eq!(next().await, Wire::NotServing);
        assert_eq!(status(&service, "a.v1.Reading").await, Wire::NotServing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_is_bad_news_and_hangs_once() {
        let (go_on, hangs) = mpsc::channel::<()>();
        let (hangs, looks) = (Mutex::new(hangs), Arc::new(Mutex::new(0)));
        let health = Health::new(METHODS, {
            let looks = Arc::clone(&looks);
            move || {
                *looks.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                // Whoever let it go on once does so for good.
                let _ = hangs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                None
            }
        });
        let service = health.begin(CancellationToken::new()).await;
        let mut watch = Box::pin(service.watch(of("")).await.unwrap().into_inner());
        let mut next = async || watch.next().await.unwrap().unwrap().status();
        assert_eq!(next().await, Wire::Serving);
        while *looks.lock().unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        // A thread that hangs keeps the clock from going by itself.
        while status(&service, "").await == Wire::Serving {
            tokio::time::advance(PATIENCE / 10).await;
        }
        for _ in 0..100 {
            tokio::time::advance(PATIENCE / 10).await;
            tokio::task::yield_now().await;
        }
        assert_eq!((next().await, *looks.lock().unwrap()), (Wire::NotServing, 1));
        drop(go_on);
        while status(&service, "").await == Wire::NotServing {
            tokio::time::advance(PERIOD).await;
        }
    }
}
