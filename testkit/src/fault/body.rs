//! How faults send a body.

use std::{io, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};

use super::Kind;
use crate::server::listen::Reset;

/// How long a broken connection stays open after its last byte, so that the kernel has sent that byte.
const LINGER: Duration = Duration::from_millis(50);

/// The body as these faults send it.
pub(crate) fn of(bytes: Bytes, faults: &[Kind], reset: &Reset) -> Body {
    let steps = stream::iter(steps(bytes, faults));
    let more = faults.contains(&Kind::EndlessBody).then_some(Bytes::from_static(&[b' '; 16 << 10]));
    let more = stream::iter(more).flat_map(|it| stream::repeat_with(move || Step::Send(it.clone())));
    Body::from_stream(play(steps.chain(more), reset.clone()))
}

enum Step {
    Send(Bytes),
    Wait(Duration),
    Break,
    Reset,
}

fn steps(mut bytes: Bytes, faults: &[Kind]) -> Vec<Step> {
    let (mut rate, mut stall, mut end) = (None, None, None);
    for fault in faults {
        match fault {
            Kind::Reset(at) => end = Some((*at, Step::Reset)),
            Kind::Slow(bytes_per_second) => rate = Some(*bytes_per_second),
            Kind::Stall(duration) => stall = Some((bytes.len() / 2, *duration)),
            Kind::TooLong(more) => bytes = [&bytes, &*vec![b' '; *more]].concat().into(),
            Kind::TruncateAt(at) => end = Some((*at, Step::Break)),
            Kind::WrongBytes if !bytes.is_empty() => {
                let mut wrong = bytes.to_vec();
                wrong[0] ^= 0xff;
                bytes = wrong.into();
            }
            _ => {}
        }
    }

    let mut steps = Vec::new();
    let kept = end.as_ref().map_or(bytes.len(), |(at, _)| bytes.len().min(*at));
    let rest = bytes.slice(..kept);
    let (first, rest) = match stall {
        Some((at, _)) if at < kept => (rest.slice(..at), rest.slice(at..)),
        _ => (rest, Bytes::new()),
    };
    send(&mut steps, &first, rate);
    if let Some((_, duration)) = stall {
        steps.push(Step::Wait(duration));
    }
    send(&mut steps, &rest, rate);
    if let Some((_, end)) = end {
        steps.extend([Step::Wait(LINGER), end]);
    }
    steps
}

/// Adds the steps that send these bytes, in 20 parts per second if there is a rate.
fn send(steps: &mut Vec<Step>, bytes: &Bytes, rate: Option<usize>) {
    let size = rate.map_or(64 << 10, |rate| rate.div_ceil(20).max(1));
    for part in bytes.chunks(size) {
        steps.push(Step::Send(bytes.slice_ref(part)));
        if rate.is_some() {
            steps.push(Step::Wait(Duration::from_millis(50)));
        }
    }
}

fn play(
    steps: impl Stream<Item = Step> + Send,
    reset: Reset,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    steps.filter_map(move |step| {
        let reset = reset.clone();
        async move {
            match step {
                Step::Send(bytes) => return Some(Ok(bytes)),
                Step::Wait(duration) => {
                    tokio::time::sleep(duration).await;
                    return None;
                }
                Step::Break => {}
                Step::Reset => reset.set(),
            }
            Some(Err(io::Error::other("the test wants the connection broken")))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{Fault, http, sample};

    #[tokio::test]
    async fn wrong_and_missing_bytes_are_seen_on_the_wire() {
        let (registry, image) = sample::registry().await;
        let whole = image.blob(image.layers()[0].digest());
        let path = sample::layer_path(&image);
        registry.fault(Fault::truncate_at(&path, 1000).once());
        let cut = http::get(&registry.host(), &path).await;
        registry.fault(Fault::wrong_bytes(&path).once());
        let wrong = http::get(&registry.host(), &path).await;
        let right = http::get(&registry.host(), &path).await;

        assert_eq!(cut.header("content-length"), Some(&*whole.len().to_string()));
        assert_eq!(cut.body, whole[..1000]);
        assert_eq!(wrong.body.len(), whole.len());
        assert_eq!((wrong.body[0], &wrong.body[1..]), (whole[0] ^ 0xff, &whole[1..]));
        assert_eq!(right.body, whole);
    }

    #[tokio::test]
    async fn a_reset_comes_after_the_bytes_before_it() {
        let (registry, image) = sample::registry().await;
        let path = sample::layer_path(&image);
        registry.fault(Fault::reset(&path, 1000).once());

        let (answer, error) = http::attempt(&registry.host(), "GET", &path, b"", usize::MAX).await;

        let error = error.expect("the connection was reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let answer = answer.expect("the head came first");
        assert_eq!(answer.body, image.blob(image.layers()[0].digest())[..1000]);
        assert_eq!(http::get(&registry.host(), &path).await.status, 200);
    }

    #[tokio::test]
    async fn a_body_may_be_longer_than_it_should_be() {
        let (registry, image) = sample::registry().await;
        let whole = image.blob(image.layers()[0].digest());
        let path = sample::layer_path(&image);
        registry.fault(Fault::too_long(&path, 3).once());
        let longer = http::get(&registry.host(), &path).await;
        registry.fault(Fault::endless_body(&path).once());
        let (endless, _) = http::attempt(&registry.host(), "GET", &path, b"", 3_000_000).await;

        assert_eq!(longer.header("content-length"), None);
        assert_eq!(longer.body, [&whole, &b"   "[..]].concat());
        let endless = endless.expect("it was an answer");
        assert_eq!(endless.body[..whole.len()], whole);
        assert!(endless.body.len() > 2_900_000, "{}", endless.body.len());
    }

    #[tokio::test]
    async fn faults_of_different_kinds_come_together() {
        let (registry, image) = sample::registry().await;
        let path = sample::layer_path(&image);
        registry.fault(Fault::error_body(&path, 500, 9000).once());
        registry.fault(Fault::truncate_at(&path, 4000).once());
        registry.fault(Fault::wrong_bytes(&path).once());

        let answer = http::get(&registry.host(), &path).await;

        assert_eq!((answer.status, answer.body.len(), answer.body[0]), (500, 4000, b'{' ^ 0xff));
    }

    #[tokio::test]
    async fn slow_faults_take_their_time_and_send_everything() {
        let (registry, image) = sample::registry().await;
        let whole = image.blob(image.layers()[0].digest());
        let path = sample::layer_path(&image);
        let least = Duration::from_millis(200);
        for fault in
            [Fault::delay(&path, least), Fault::stall(&path, least), Fault::slow(&path, whole.len() * 4)]
        {
            registry.fault(fault.clone().once());
            let started = Instant::now();

            let response = http::get(&registry.host(), &path).await;

            assert!(started.elapsed() >= least, "{fault:?}: {:?}", started.elapsed());
            assert_eq!(response.body, whole, "{fault:?}");
        }
    }
}
