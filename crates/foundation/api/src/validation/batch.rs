//! Jobs and CronJobs.

use serde_json::Value;

use super::Errors;
use super::field::Field;
use super::workload::{matches_template, numbers, template};
use crate::meta::text;
use crate::names;

/// Suffixes of the jobs that a CronJob makes take eleven characters of the sixty-three.
const CRON_NAME: usize = 52;
const MOST_PARALLEL_INDEXED: i64 = 100_000;

pub fn job(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    job_spec(&spec, errors);
    if spec.at("selector").present() {
        super::common::selector(&spec.at("selector"), errors);
        matches_template(&spec, errors);
    } else {
        errors.missing(&spec.at("selector"), "");
    }
    generated_selector(value, errors);
    if spec.at("completionMode").is("Indexed")
        && let Some(completions) = spec.at("completions").int().filter(|number| *number > 0)
    {
        let name = crate::meta::name(value);
        let last = format!("{name}-{}", completions - 1);
        if !names::dns1123_label(&last).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {last}");
            errors.bad(&Field::top(value, "metadata").at("name"), &why);
        }
    }
}

/// Unless the author took charge of it, the selector is the one made from the job's uid.
fn generated_selector(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    if spec.at("manualSelector").is_true() || !spec.at("selector").present() {
        return;
    }
    let wanted = text(value, &["metadata", "uid"]);
    let selected = spec.at("selector").at("matchLabels");
    let keys = ["batch.kubernetes.io/controller-uid", "controller-uid"];
    if !keys.iter().any(|key| text(selected.value, &[key]) == wanted) {
        errors.bad(&spec.at("selector"), "`selector` not auto-generated");
    }
}

fn job_spec(spec: &Field, errors: &mut Errors) {
    numbers(
        spec,
        &[
            "parallelism",
            "completions",
            "activeDeadlineSeconds",
            "backoffLimit",
            "ttlSecondsAfterFinished",
            "backoffLimitPerIndex",
            "maxFailedIndexes",
        ],
        errors,
    );
    let field = |name: &str| spec.at(name);
    let most_failed = field("maxFailedIndexes");
    if most_failed.present() && !field("backoffLimitPerIndex").present() {
        errors.missing(&field("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if field("managedBy").present() {
        super::common::domain_path(&field("managedBy"), errors);
        errors.at_most_bytes(&field("managedBy"), 63);
    }
    errors.known(&field("completionMode"), &["NonIndexed", "Indexed"]);
    if field("completionMode").is("Indexed") {
        let completions = field("completions");
        if !completions.present() {
            errors.missing(&completions, "when completion mode is Indexed");
        }
        if field("parallelism").int().is_some_and(|number| number > MOST_PARALLEL_INDEXED) {
            let why = "must be less than or equal to 100000 when completion mode is Indexed";
            errors.bad(&field("parallelism"), why);
        }
        if let (Some(failed), Some(all)) = (most_failed.int(), completions.int())
            && failed > all
        {
            errors.bad(&most_failed, "must be less than or equal to completions");
        }
    } else {
        for name in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
            if field(name).present() {
                errors.bad(&field(name), "requires indexed completion mode");
            }
        }
    }
    failure_policy(spec, errors);
    success_policy(spec, errors);
    let replacement = field("podReplacementPolicy");
    match field("podFailurePolicy").present() {
        true => errors.known(&replacement, &["Failed"]),
        false => errors.known(&replacement, &["Failed", "TerminatingOrFailed"]),
    }
    template(&field("template"), errors);
    let restart = field("template").at("spec").at("restartPolicy");
    match restart.text() {
        "" | "Always" => errors.missing(&restart, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if field("podFailurePolicy").present() => {
            errors.bad(&restart, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        _ => errors.known(&restart, &["OnFailure", "Never"]),
    }
}

fn failure_policy(spec: &Field, errors: &mut Errors) {
    const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
    let rules = spec.at("podFailurePolicy").at("rules");
    errors.at_most(&rules, 20);
    for rule in rules.items() {
        let action = rule.at("action");
        match action.text() {
            "" => errors.missing(&action, "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
            "FailIndex" if !spec.at("backoffLimitPerIndex").present() => {
                errors.bad(&action, "requires the backoffLimitPerIndex to be set");
            }
            _ => errors.known(&action, ACTIONS),
        }
        let (codes, conditions) = (rule.at("onExitCodes"), rule.at("onPodConditions"));
        match (codes.present(), conditions.len() > 0) {
            (true, true) => {
                errors.bad_place(&rule.path, "specifying both OnExitCodes and OnPodConditions is not supported");
            }
            (false, false) => {
                errors.bad_place(&rule.path, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
        if codes.present() {
            exit_codes(&codes, spec, errors);
        }
        errors.at_most(&conditions, 20);
        for condition in conditions.items() {
            errors.name(&condition.at("type"), names::qualified_name);
            errors.need_known(&condition.at("status"), &["False", "True", "Unknown"]);
        }
    }
}

fn exit_codes(codes: &Field, spec: &Field, errors: &mut Errors) {
    errors.need_known(&codes.at("operator"), &["In", "NotIn"]);
    let pod = spec.at("template").at("spec");
    let name = codes.at("containerName");
    let known = |list: &str| pod.at(list).items().any(|container| container.at("name").text() == name.text());
    if name.present() && !known("containers") && !known("initContainers") {
        errors.bad(&name, "must be one of the container or initContainer names in the pod template");
    }
    let values = codes.at("values");
    if values.len() == 0 {
        errors.bad(&values, "at least one value is required");
    }
    errors.at_most(&values, 255);
    let mut before: Vec<i64> = Vec::new();
    let mut ordered = true;
    for value in values.items() {
        let code = value.int().unwrap_or(0);
        if code == 0 && codes.at("operator").is("In") {
            errors.bad(&value, "must not be 0 for the In operator");
        }
        if before.contains(&code) {
            errors.twice(&value);
        }
        ordered &= before.last().is_none_or(|last| *last <= code);
        before.push(code);
    }
    if !ordered {
        errors.bad(&values, "must be ordered");
    }
}

fn success_policy(spec: &Field, errors: &mut Errors) {
    let policy = spec.at("successPolicy");
    if !policy.present() || !spec.at("completionMode").is("Indexed") {
        return;
    }
    let rules = policy.at("rules");
    if rules.len() == 0 {
        errors.missing(&rules, "at least one rules must be specified when the successPolicy is specified");
    }
    errors.at_most(&rules, 20);
    let completions = spec.at("completions").int().unwrap_or(0);
    for rule in rules.items() {
        let (count, indexes) = (rule.at("succeededCount"), rule.at("succeededIndexes"));
        if !count.present() && !indexes.present() {
            errors.missing(&rule, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let listed = match count_indexes(indexes.text(), completions) {
            Ok(listed) => listed,
            Err(why) => {
                errors.bad(&indexes, &format!("error parsing succeededIndexes: {why}"));
                continue;
            }
        };
        errors.not_negative(&count);
        let wanted = count.int().unwrap_or(0);
        if wanted > completions {
            let why = format!("must be less than or equal to {completions} (the number of specified completions)");
            errors.bad(&count, &why);
        }
        if indexes.present() && wanted > listed {
            let what = "(the number of indexes in the specified succeededIndexes field)";
            errors.bad(&count, &format!("must be less than or equal to {listed} {what}"));
        }
    }
}

/// How many indexes `1,3-5` names.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut last) = (0, None);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let limits: Vec<&str> = part.split('-').collect();
        if limits.len() > 2 {
            let rule = "violates the requirement that an index interval can have at most two parts separated by '-'";
            return Err(format!("the fragment {part:?} {rule}"));
        }
        let number = |limit: &str| match limit.parse::<i64>() {
            Err(_) => Err(format!("cannot convert string to integer for index: {limit:?}")),
            Ok(number) if number >= completions => Err(format!("too large index: {limit:?}")),
            Ok(number) => Ok(number),
        };
        let first = number(limits[0])?;
        let end = if limits.len() == 2 { number(limits[1])? } else { first };
        let previous =
            if limits.len() == 2 && first >= end { Some((first, end)) } else { last.map(|last| (last, first)) };
        if let Some((previous, current)) = previous.filter(|(previous, current)| previous >= current) {
            return Err(format!("non-increasing order, previous: {previous}, current: {current}"));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

pub fn job_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (Field::spec(new), Field::spec(old));
    let completions = spec.at("completions");
    if spec.at("completionMode").is("Indexed") {
        // An indexed job may grow and shrink, together with its parallelism.
        if completions.value != before.at("completions").value
            && completions.present()
            && completions.int() != spec.at("parallelism").int()
        {
            errors.bad(&completions, "can only be modified in tandem with spec.parallelism");
        }
    } else {
        errors.same(&completions, &before.at("completions"));
    }
    errors.fixed(new, old, &["selector"]);
    // A suspended job that has not begun may still change where its pods may run.
    let mutable = before.at("suspend").is_true() && old["status"]["startTime"].is_null();
    let template = |value: &Value| {
        let mut template = value["spec"]["template"].clone();
        if mutable {
            for path in [&["metadata", "labels"][..], &["metadata", "annotations"]] {
                crate::meta::child_mut(&mut template, path[0]).remove(path[1]);
            }
            let pod = crate::meta::child_mut(&mut template, "spec");
            for name in ["nodeSelector", "tolerations", "schedulingGates"] {
                pod.remove(name);
            }
            if let Some(affinity) = pod.get_mut("affinity").and_then(Value::as_object_mut) {
                affinity.remove("nodeAffinity");
                if affinity.is_empty() {
                    pod.remove("affinity");
                }
            }
        }
        template
    };
    if template(new) != template(old) {
        errors.bad(&spec.at("template"), super::field::IMMUTABLE);
    }
    errors.fixed(
        new,
        old,
        &["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"],
    );
}

pub fn cron_job(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let schedule = spec.at("schedule");
    if errors.need(&schedule) {
        if let Err(why) = cron(schedule.text()) {
            errors.bad(&schedule, &why);
        }
        if schedule.text().contains("TZ") {
            errors.bad(&schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        }
    }
    numbers(&spec, &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"], errors);
    let zone = spec.at("timeZone");
    if zone.present() {
        time_zone(&zone, errors);
    }
    errors.need_known(&spec.at("concurrencyPolicy"), &["Allow", "Forbid", "Replace"]);
    let job = spec.at("jobTemplate").at("spec");
    job_spec(&job, errors);
    if job.at("selector").present() {
        errors.bad(&job.at("selector"), "`selector` will be auto-generated");
    }
    if job.at("manualSelector").is_true() {
        errors.bad(&job.at("manualSelector"), "supported values: \"nil\", \"false\"");
    }
}

pub fn cron_job_name(name: &str) -> Vec<String> {
    let mut problems = names::dns1123_subdomain(name);
    if name.len() > CRON_NAME {
        problems.push(format!("must be no more than {CRON_NAME} characters"));
    }
    problems
}

fn time_zone(zone: &Field, errors: &mut Errors) {
    let text = zone.text();
    let part = |part: &str| {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b".-_+".contains(&b);
        (1..=14).contains(&part.len())
            && part != "."
            && part != ".."
            && !part.starts_with('-')
            && part.bytes().all(fine)
    };
    if text.is_empty() {
        errors.bad(zone, "timeZone must be nil or non-empty string");
    } else if !text.split('/').all(part) {
        errors.bad(zone, &format!("unknown time zone {text}"));
    } else if text.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.bad(zone, why);
    } else if jiff::tz::TimeZone::get(text).is_err() {
        errors.bad(zone, &format!("unknown time zone {text}"));
    }
}

const MACROS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Whether a schedule is one: five fields, or a named interval.
fn cron(schedule: &str) -> Result<(), String> {
    let schedule = match schedule.split_once(' ') {
        Some((zone, rest)) if zone.starts_with("TZ=") || zone.starts_with("CRON_TZ=") => rest.trim(),
        _ => schedule,
    };
    if schedule.starts_with('@') {
        let every = schedule.strip_prefix("@every ").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let known = MACROS.contains(&schedule) || every;
        return if known { Ok(()) } else { Err(format!("unrecognized descriptor: {schedule}")) };
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    let bounds: [(u32, u32, &[&str]); 5] = [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, &MONTHS), (0, 6, &DAYS)];
    for (field, (low, high, words)) in fields.iter().zip(bounds) {
        for range in field.split(',') {
            cron_range(range, low, high, words)?;
        }
    }
    Ok(())
}

fn cron_range(range: &str, low: u32, high: u32, words: &[&str]) -> Result<(), String> {
    let number = |text: &str| {
        // Days count from zero, months from one, as their bounds do.
        let word = words.iter().position(|word| word.eq_ignore_ascii_case(text));
        match word.and_then(|index| u32::try_from(index).ok()) {
            Some(index) => Ok(index + low),
            None => text.parse::<u32>().map_err(|_| format!("failed to parse int from {text}: invalid syntax")),
        }
    };
    let (span, step) = match range.split_once('/') {
        Some((span, step)) => (span, Some(number(step)?)),
        None => (range, None),
    };
    if step == Some(0) {
        return Err(format!("step of range should be a positive number: {range}"));
    }
    if span == "*" || span == "?" {
        return Ok(());
    }
    let (start, end) = match span.split_once('-') {
        Some((start, end)) => (number(start)?, number(end)?),
        None => (number(span)?, number(span)?),
    };
    if start < low {
        return Err(format!("beginning of range ({start}) below minimum ({low}): {range}"));
    }
    if end > high {
        return Err(format!("end of range ({end}) above maximum ({high}): {range}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {range}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for fine in ["* * * * *", "*/5 0-6 1,15 jan-mar MON", "@hourly", "@every 1h", "0 0 ? * 0"] {
            assert_eq!(cron(fine), Ok(()), "{fine}");
        }
        for bad in ["", "* * * *", "60 * * * *", "5-1 * * * *", "* * 0 * *", "*/0 * * * *", "@never", "x * * * *"] {
            assert!(cron(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn indexes() {
        assert_eq!(count_indexes("0,2-4", 5), Ok(4));
        assert_eq!(count_indexes("", 5), Ok(0));
        assert!(
            count_indexes("4,2", 5).is_err() && count_indexes("5", 5).is_err() && count_indexes("1-2-3", 9).is_err()
        );
    }
}
