//! How numbers are written that are read when they are asked for.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// What a number is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// It only grows while this process is there.
    Counter,
    /// It is as it is now.
    Gauge,
}

impl Kind {
    /// As the crate has it.
    pub(super) fn metric_type(self) -> MetricType {
        match self {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        }
    }

    /// Writes a number of this kind.
    pub(super) fn write(self, to: MetricEncoder<'_>, value: u64) -> fmt::Result {
        match self {
            Kind::Counter => ConstCounter::new(value).encode(to),
            // The crate's whole gauges are signed.
            Kind::Gauge => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(to),
        }
    }
}

/// Numbers of one kind: their names, what they mean, and what they are.
pub(crate) fn numbers(
    to: &mut DescriptorEncoder<'_>,
    kind: Kind,
    all: &[(&str, &str, u64)],
) -> fmt::Result {
    for &(name, help, value) in all {
        kind.write(to.encode_descriptor(name, help, None, kind.metric_type())?, value)?;
    }
    Ok(())
}

/// One number for each value of a label.
pub(crate) fn numbers_by(
    to: &mut DescriptorEncoder<'_>,
    kind: Kind,
    (name, help): (&str, &str),
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, kind.metric_type())?;
    for (value, n) in values {
        kind.write(family.encode_family(&[(label, value)])?, n)?;
    }
    Ok(())
}

/// A time, as of now.
pub(crate) fn seconds(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: Duration,
) -> fmt::Result {
    let metric = to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
    ConstGauge::new(value.as_secs_f64()).encode(metric)
}

/// How long all of something took together; `name` ends in its unit.
pub(crate) fn seconds_in_all(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: Duration,
) -> fmt::Result {
    let metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(value.as_secs_f64()).encode(metric)
}
