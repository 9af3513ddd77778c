//! A pod's images: present, being pulled beside everything else, or waiting for their back-off.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use dhow_cri::Runtime;
use dhow_cri::runtime::{ImageAuth, ImageInfo};
use dhow_image::Reference;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::backoff::Backoff;

/// What is told to the pod's owner about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

/// Where an image is on its way.
#[derive(Debug)]
pub enum Image {
    Here(Box<ImageInfo>),
    /// The worker is woken at its end.
    Pulling,
    /// The container waits, for this reason; until then, or the worker's next look.
    Waiting {
        reason: &'static str,
        message: String,
        until: Option<SystemTime>,
    },
}

/// How a pull ended, and how long it took.
type Outcome = (Result<String, String>, Duration);

struct Pull {
    outcome: Arc<Mutex<Option<Outcome>>>,
    task: AbortHandle,
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The pulls of one pod; dropping it ends them.
#[derive(Default)]
pub struct Pulls {
    backoff: Backoff,
    /// By container name: two containers may each want their own look at a registry.
    running: BTreeMap<String, Pull>,
    /// Why an image's last pull failed.
    failed: BTreeMap<String, String>,
}

/// One container's wish.
pub struct Wanted<'a> {
    pub container: &'a str,
    pub image: &'a str,
    /// `Always`, `IfNotPresent` or `Never`.
    pub policy: &'a str,
    pub now: SystemTime,
}

fn waiting(reason: &'static str, message: impl Into<String>) -> Image {
    Image::Waiting { reason, message: message.into(), until: None }
}

fn warn(reason: &'static str, message: impl Into<String>) -> Notice {
    Notice { warning: true, reason, message: message.into() }
}

impl Pulls {
    pub fn is_running(&self, container: &str) -> bool {
        self.running.contains_key(container)
    }

    /// Looks for the image and begins to pull it where the policy asks for that. Whatever is to be told of it is added
    /// to `notices`; `auth` is asked for only when a pull begins.
    pub async fn image<A: Future<Output = Option<ImageAuth>>>(
        &mut self,
        runtime: &Arc<dyn Runtime>,
        wanted: &Wanted<'_>,
        auth: impl FnOnce() -> A,
        wake: &Arc<Notify>,
        notices: &mut Vec<Notice>,
    ) -> Result<Image, dhow_cri::Error> {
        let Wanted { container, image, policy, now } = *wanted;
        if let Some(pull) = self.running.get(container) {
            let Some((result, took)) = pull.outcome.lock().take() else { return Ok(Image::Pulling) };
            self.running.remove(container);
            return self.pulled(runtime, wanted, result, took, notices).await;
        }
        // An id, whole or cut short, names an image that is here; anything else has to be a reference.
        let present = runtime.image_status(image).await?;
        if let (None, Err(error)) = (&present, Reference::parse(image)) {
            let message =
                format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {error}");
            notices.push(warn("InspectFailed", &message));
            notices.push(warn("Failed", "Error: InvalidImageName"));
            return Ok(waiting("InvalidImageName", message));
        }
        match (present, policy) {
            (Some(found), "IfNotPresent" | "Never") => {
                let message = format!("Container image {image:?} already present on machine");
                notices.push(Notice { warning: false, reason: "Pulled", message });
                return Ok(Image::Here(Box::new(found)));
            }
            (None, "Never") => {
                let message = format!("Container image {image:?} is not present with pull policy of Never");
                notices.push(warn("ErrImageNeverPull", &message));
                notices.push(warn("Failed", "Error: ErrImageNeverPull"));
                return Ok(waiting("ErrImageNeverPull", message));
            }
            _ => {}
        }
        if let Some(until) = self.backoff.until(image).filter(|until| *until > now) {
            let back_off = format!("Back-off pulling image {image:?}");
            notices.push(Notice { warning: false, reason: "BackOff", message: back_off.clone() });
            notices.push(warn("Failed", "Error: ImagePullBackOff"));
            let message = match self.failed.get(image) {
                Some(why) => format!("{back_off}: ErrImagePull: {why}"),
                None => back_off,
            };
            return Ok(Image::Waiting { reason: "ImagePullBackOff", message, until: Some(until) });
        }
        notices.push(Notice { warning: false, reason: "Pulling", message: format!("Pulling image {image:?}") });
        let auth = auth().await;
        let (runtime, name, wake) = (Arc::clone(runtime), image.to_owned(), Arc::clone(wake));
        let outcome = Arc::<Mutex<Option<Outcome>>>::default();
        let slot = Arc::clone(&outcome);
        let task = tokio::spawn(async move {
            let begun = Instant::now();
            let result = runtime.pull_image(&name, auth).await.map_err(|error| error.to_string());
            *slot.lock() = Some((result, begun.elapsed()));
            wake.notify_one();
        });
        self.running.insert(container.to_owned(), Pull { outcome, task: task.abort_handle() });
        Ok(Image::Pulling)
    }

    async fn pulled(
        &mut self,
        runtime: &Arc<dyn Runtime>,
        wanted: &Wanted<'_>,
        result: Result<String, String>,
        took: Duration,
        notices: &mut Vec<Notice>,
    ) -> Result<Image, dhow_cri::Error> {
        let Wanted { image, now, .. } = *wanted;
        let gone = || format!("image {image:?} is gone after its pull");
        let result = match result {
            Ok(_) => runtime.image_status(image).await?.ok_or_else(gone),
            Err(error) => Err(error),
        };
        match result {
            Ok(info) => {
                self.backoff.forget(image);
                self.failed.remove(image);
                let took = format!("{:.3}s", took.as_secs_f64());
                let message = format!(
                    "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {} bytes.",
                    info.size
                );
                notices.push(Notice { warning: false, reason: "Pulled", message });
                Ok(Image::Here(Box::new(info)))
            }
            Err(why) => {
                self.backoff.grow(image, now, now);
                notices.push(warn("Failed", format!("Failed to pull image {image:?}: {why}")));
                notices.push(warn("Failed", "Error: ErrImagePull"));
                self.failed.insert(image.to_owned(), why.clone());
                Ok(Image::Waiting { reason: "ErrImagePull", message: why, until: self.backoff.until(image) })
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::FakeRuntime;

    struct Fixture {
        fake: Arc<FakeRuntime>,
        runtime: Arc<dyn Runtime>,
        pulls: Pulls,
        wake: Arc<Notify>,
        notices: Vec<Notice>,
    }

    impl Fixture {
        fn new() -> Self {
            let fake = Arc::new(FakeRuntime::default());
            let (pulls, wake) = (Pulls::default(), Arc::default());
            Self { runtime: fake.clone(), fake, pulls, wake, notices: Vec::new() }
        }

        async fn look(&mut self, image: &str, policy: &str, second: u64) -> Image {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            let wanted = Wanted { container: "a", image, policy, now };
            self.pulls.image(&self.runtime, &wanted, || async { None }, &self.wake, &mut self.notices).await.unwrap()
        }

        /// Looks until a pull that began has ended.
        async fn settle(&mut self, image: &str, second: u64) -> Image {
            loop {
                match self.look(image, "Always", second).await {
                    Image::Pulling => self.wake.notified().await,
                    other => return other,
                }
            }
        }

        fn reasons(&mut self) -> Vec<&'static str> {
            self.notices.drain(..).map(|n| n.reason).collect()
        }
    }

    fn reason(image: &Image) -> &'static str {
        match image {
            Image::Waiting { reason, .. } => reason,
            Image::Here(_) => "here",
            Image::Pulling => "pulling",
        }
    }

    #[tokio::test]
    async fn a_pull_that_fails_is_tried_again_after_growing_pauses() {
        let mut fixture = Fixture::new();
        assert_eq!(reason(&fixture.settle("r.example/a", 100).await), "ErrImagePull");
        assert_eq!(fixture.reasons(), ["Pulling", "Failed", "Failed"]);
        let waiting = fixture.look("r.example/a", "Always", 105).await;
        let Image::Waiting { reason: why, message, until } = waiting else { panic!("{waiting:?}") };
        assert_eq!((why, until), ("ImagePullBackOff", Some(SystemTime::UNIX_EPOCH + Duration::from_secs(110))));
        assert!(message.starts_with("Back-off pulling image \"r.example/a\": ErrImagePull: "), "{message}");
        assert_eq!(fixture.reasons(), ["BackOff", "Failed"]);
        assert_eq!(reason(&fixture.settle("r.example/a", 110).await), "ErrImagePull");
        assert_eq!(reason(&fixture.look("r.example/a", "Always", 129).await), "ImagePullBackOff");
        fixture.fake.images.lock().insert("r.example/a".into());
        assert_eq!(reason(&fixture.settle("r.example/a", 130).await), "here");
        assert_eq!(fixture.reasons().last(), Some(&"Pulled"));
    }

    #[tokio::test]
    async fn policies_and_bad_names_have_their_own_words() {
        let mut fixture = Fixture::new();
        assert_eq!(reason(&fixture.look("r.example/a", "Never", 0).await), "ErrImageNeverPull");
        assert_eq!(reason(&fixture.look("Not A Name", "IfNotPresent", 0).await), "InvalidImageName");
        assert_eq!(fixture.reasons(), ["ErrImageNeverPull", "Failed", "InspectFailed", "Failed"]);
        fixture.fake.images.lock().insert("r.example/a".into());
        assert_eq!(reason(&fixture.look("r.example/a", "IfNotPresent", 0).await), "here");
        assert_eq!(fixture.reasons(), ["Pulled"]);
        assert_eq!(reason(&fixture.look("r.example/a", "Always", 0).await), "pulling");
    }
}
