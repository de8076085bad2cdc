//! What `GET /metrics` says, read by the rules of Prometheus' text format and of its `promtool check metrics`.

use std::collections::{BTreeMap, HashSet};

use super::http::Api;

/// One scrape.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// Each series as it stands in the text (`name{label="word"}`), with its value.
    series: BTreeMap<String, f64>,
}

impl Scrape {
    /// Asks the service.
    pub async fn of(api: &Api) -> Self {
        let (status, body, headers) = api.get("/metrics", None).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        Self::read(body.as_str().expect("a text")).unwrap_or_else(|wrong| panic!("{wrong} in\n{body}"))
    }

    /// The value of a series that must be there.
    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        self.get(series).unwrap_or_else(|| panic!("no {series} in {:#?}", self.series))
    }

    /// The value of a series.
    pub fn get(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }

    /// Reads a text, strictly; what is wrong with it otherwise.
    pub fn read(text: &str) -> Result<Self, String> {
        if !text.ends_with('\n') {
            return Err("no newline at the end".into());
        }
        let mut families = HashSet::new();
        let mut series = BTreeMap::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let (name, help) = line
                .strip_prefix("# HELP ")
                .and_then(|rest| rest.split_once(' '))
                .ok_or_else(|| format!("'{line}' where a HELP must be"))?;
            let kind = lines
                .next()
                .and_then(|line| line.strip_prefix("# TYPE ")?.strip_prefix(name)?.strip_prefix(' '))
                .ok_or_else(|| format!("no TYPE after the HELP of {name}"))?;
            lint(name, help, kind)?;
            if !families.insert(name) {
                return Err(format!("{name} comes twice"));
            }
            let mut samples = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let sample = sample(line).ok_or_else(|| format!("'{line}' is no sample"))?;
                if series.insert(sample.0.to_owned(), sample.1).is_some() {
                    return Err(format!("{} comes twice", sample.0));
                }
                samples.push(sample);
            }
            match kind {
                "histogram" => histogram(name, &samples)?,
                _ => plain(name, kind, &samples)?,
            }
        }
        Ok(Self { series })
    }
}

/// What promtool complains about.
fn lint(name: &str, help: &str, kind: &str) -> Result<(), String> {
    let plain = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit() || sign == '_';
    let told = [
        (!name.starts_with("presence_") || !name.chars().all(plain), "its name"),
        (help.trim().is_empty(), "its help"),
        (!["counter", "gauge", "histogram"].contains(&kind), "its type"),
        ((kind == "counter") != name.ends_with("_total"), "_total"),
        (["_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end)), "a reserved ending"),
        (["milli", "_ms", "minutes", "percent"].iter().any(|word| name.contains(word)), "no base unit"),
        (name.contains(kind), "its type in the name"),
    ];
    match told.iter().find(|(wrong, _)| *wrong) {
        Some((_, what)) => Err(format!("{name} ({kind}): {what}")),
        None => Ok(()),
    }
}

/// `name{label="word"} value`, without a timestamp.
fn sample(line: &str) -> Option<(&str, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let number = match value {
        "+Inf" => f64::INFINITY,
        value if value.starts_with(|sign: char| sign.is_ascii_digit()) => value.parse().ok()?,
        _ => return None,
    };
    let (_, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}')?;
    let well_formed = labels.is_empty()
        || labels.split(',').all(|label| {
            label.split_once('=').is_some_and(|(name, word)| {
                !name.is_empty() && word.len() > 2 && word.starts_with('"') && word.ends_with('"')
            })
        });
    well_formed.then_some((series, number))
}

fn plain(name: &str, kind: &str, samples: &[(&str, f64)]) -> Result<(), String> {
    let own = |series: &str| series.split('{').next() == Some(name);
    if samples.is_empty() || !samples.iter().all(|(series, _)| own(series)) {
        return Err(format!("the samples of {name} are {samples:?}"));
    }
    if kind == "counter" && samples.iter().any(|(_, value)| *value < 0.0) {
        return Err(format!("{name} counts down: {samples:?}"));
    }
    Ok(())
}

/// Sum and count, and buckets that rise to `+Inf`, which holds all.
fn histogram(name: &str, samples: &[(&str, f64)]) -> Result<(), String> {
    let wrong = || format!("the histogram {name} is {samples:?}");
    let find =
        |end: &str| samples.iter().find(|(series, _)| *series == format!("{name}{end}")).map(|it| it.1);
    let buckets: Vec<(f64, f64)> = samples
        .iter()
        .filter_map(|(series, value)| {
            let bound = series.strip_prefix(&format!("{name}_bucket{{le=\""))?.strip_suffix("\"}")?;
            Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, *value))
        })
        .collect();
    let rises = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
    let whole = find("_sum").is_some()
        && buckets.last().is_some_and(|(bound, all)| bound.is_infinite() && Some(*all) == find("_count"));
    if rises && whole && buckets.len() + 2 == samples.len() { Ok(()) } else { Err(wrong()) }
}

#[test]
fn the_checker_takes_what_prometheus_takes() {
    let good = "# HELP presence_a_total A.\n# TYPE presence_a_total counter\npresence_a_total{by=\"x\"} 1\n\
        # HELP presence_b_seconds B.\n# TYPE presence_b_seconds histogram\npresence_b_seconds_sum 0.5\n\
        presence_b_seconds_count 1\npresence_b_seconds_bucket{le=\"1.0\"} 1\npresence_b_seconds_bucket{le=\"+Inf\"} 1\n";
    let scrape = Scrape::read(good).unwrap();
    assert!((scrape.value("presence_a_total{by=\"x\"}") - 1.0).abs() < f64::EPSILON);
    for (from, to) in [
        ("_total", ""),
        ("counter", "gauge"),
        ("# HELP presence_a_total A.\n", ""),
        ("} 1\n# HELP", "} one\n# HELP"),
        ("{by=\"x\"}", "{by=x}"),
        ("{le=\"+Inf\"} 1", "{le=\"+Inf\"} 0"),
        ("_seconds", "_ms"),
        ("presence_b_seconds_sum 0.5\n", ""),
        ("presence_a", "presence A"),
    ] {
        let bad = good.replace(from, to);
        assert!(Scrape::read(&bad).is_err(), "{from} → {to} passes:\n{bad}");
    }
    assert!(Scrape::read(&(good.to_owned() + good)).is_err());
    assert!(Scrape::read(good.trim_end()).is_err());
}
