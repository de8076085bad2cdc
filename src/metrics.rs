//! What the service counts, and how Prometheus reads it.
//!
//! The only room that knows the exposition format. It knows no number: each room holds its own counters beside what they
//! count, names them, and enters them into a [`Registry`]. Counting is a relaxed addition to one atomic; labels are
//! looked up when a counter is made and never again.

use prometheus_client::encoding::text;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry;

pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::histogram::Histogram;

/// What every name begins with.
const PREFIX: &str = "presence";

/// Prometheus' own text format: what is served to whoever does not ask for the other, and read by everyone.
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Its successor, which Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names with their help and their numbers, in the order in which they were entered.
#[derive(Debug)]
pub struct Registry(registry::Registry);

impl Default for Registry {
    fn default() -> Self {
        Self(registry::Registry::with_prefix(PREFIX))
    }
}

impl Registry {
    /// Enters a counter. `name` comes without `presence_` before and `_total` behind it, `help` without a full stop.
    pub fn counter(&mut self, name: &str, help: &str, counter: &Counter) {
        self.0.register(name, help, counter.clone());
    }

    /// Enters counters that one label tells apart.
    pub fn counters<const N: usize>(&mut self, name: &str, help: &str, counters: &Counters<N>) {
        self.0.register(name, help, counters.family.clone());
    }

    /// Enters a histogram.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.0.register(name, help, histogram.clone());
    }

    /// Enters a value that was just measured; for a registry that lives as long as one scrape.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.0.register(name, help, ConstGauge::new(value));
    }
}

/// Counters of one name, told apart by a label whose words are known from the start.
#[derive(Debug, Clone)]
pub struct Counters<const N: usize> {
    family: Family<[(&'static str, &'static str); 1], Counter>,
    each: [Counter; N],
}

impl<const N: usize> Counters<N> {
    /// A counter for each word, all of which show from the first scrape on.
    pub fn new(label: &'static str, words: [&'static str; N]) -> Self {
        let family = Family::default();
        let each = words.map(|word| family.get_or_create_owned(&[(label, word)]));
        Self { family, each }
    }

    /// The counter of the word at `index`.
    pub const fn at(&self, index: usize) -> &Counter {
        &self.each[index]
    }
}

/// What is in these registries as a text, with its content type: `OpenMetrics` where `accept` asks for it.
pub fn exposition(accept: &str, registries: &[&Registry]) -> (&'static str, String) {
    let mut open_metrics = String::new();
    for Registry(registry) in registries {
        // A `String` takes whatever is written.
        let _ = text::encode_registry(&mut open_metrics, registry);
    }
    if accept.contains("application/openmetrics-text") {
        let _ = text::encode_eof(&mut open_metrics);
        (OPEN_METRICS, open_metrics)
    } else {
        (PLAIN, plain(&open_metrics))
    }
}

/// Turns `OpenMetrics` into the plain format. What differs is that there a counter's name includes its `_total`: a reader of
/// the plain format that met the name without it would take the counter for something of no type.
fn plain(open_metrics: &str) -> String {
    let mut plain = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        if line.starts_with("# HELP ") {
            // The type, which comes next, decides under which name.
            help = line;
        } else if let Some(name) = line.strip_prefix("# TYPE ").and_then(|line| line.strip_suffix(" counter"))
        {
            let about =
                help.strip_prefix("# HELP ").and_then(|help| help.strip_prefix(name)).unwrap_or_default();
            plain.extend(["# HELP ", name, "_total", about, "\n# TYPE ", name, "_total counter\n"]);
        } else if line.starts_with("# TYPE ") {
            plain.extend([help, "\n", line, "\n"]);
        } else {
            plain.extend([line, "\n"]);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        let asked = Counters::new("by", ["one", "other"]);
        asked.at(1).inc_by(3);
        registry.counters("questions", "Questions asked", &asked);
        let sizes = Histogram::new([1.0, 2.0]);
        sizes.observe(2.0);
        registry.histogram("size", "Sizes", &sizes);
        registry.gauge("up", "Whether it is up", 0.0);
        registry
    }

    #[test]
    fn the_plain_format_has_a_counters_whole_name_in_its_type() {
        let (content_type, text) = exposition("*/*", &[&registry()]);
        assert_eq!(content_type, PLAIN);
        for line in [
            "# HELP presence_questions_total Questions asked.",
            "# TYPE presence_questions_total counter",
            "presence_questions_total{by=\"one\"} 0",
            "presence_questions_total{by=\"other\"} 3",
            "# HELP presence_size Sizes.",
            "# TYPE presence_size histogram",
            "presence_size_bucket{le=\"2.0\"} 1",
            "presence_up 0.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("EOF") && text.ends_with('\n'));
    }

    #[test]
    fn open_metrics_is_given_where_it_is_asked_for() {
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3";
        let (content_type, text) = exposition(accept, &[&registry(), &Registry::default()]);
        assert_eq!(content_type, OPEN_METRICS);
        assert!(
            text.contains("# TYPE presence_questions counter\n") && text.ends_with("\n# EOF\n"),
            "{text}"
        );
    }
}
