//! end-12: what refers to a manifest is listed.

use serde_json::{Value, json};

use super::client;
use super::content::{Manifest, OCI_CONFIG, OCI_INDEX, digest_of, sha512_of};
use super::{Artifact, Image, Index, Registry};
use crate::support::site::Reply;

const SBOM: &str = "application/vnd.example.sbom.v1";
const NOTE: &str = "text/x-note";

async fn referrers(registry: &Registry, subject: &str, query: &str) -> Reply {
    registry.get(format!("/v2/team/app/referrers/{subject}{query}")).send().await
}

fn listed(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{reply:?}");
    client::json(reply)["manifests"].as_array().unwrap().clone()
}

fn digests(reply: &Reply) -> Vec<String> {
    let mut digests: Vec<String> =
        listed(reply).iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect();
    digests.sort();
    digests
}

fn sorted(digests: &[String]) -> Vec<String> {
    let mut digests = digests.to_vec();
    digests.sort();
    digests
}

// Spec: referrers.1, referrers.4, referrers.5
#[tokio::test]
async fn the_referrers_are_200_and_an_image_index() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    registry.push("team/app", "note", &Artifact::of(NOTE, "n").about(&image)).await;
    let reply = referrers(&registry, &image.digest(), "").await;
    assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, Some(OCI_INDEX)));
    let index = client::json(&reply);
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(OCI_INDEX)));
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
}

// Spec: referrers.2, referrers.10
#[tokio::test]
async fn whoever_has_no_referrers_has_an_empty_list_and_never_404() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    for subject in [image.digest(), digest_of(b"absent"), format!("sha256:{}", "0".repeat(64)), sha512_of(b"absent")] {
        let reply = referrers(&registry, &subject, "").await;
        assert_eq!(reply.header("content-type"), Some(OCI_INDEX), "{subject}");
        assert_eq!(listed(&reply), [Value::Null; 0], "{subject}");
    }
    // Also where nothing was ever pushed: clients find out with it whether there is such an API.
    let reply = registry.get(format!("/v2/team/absent/referrers/{}", image.digest())).send().await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

// Spec: referrers.3
#[tokio::test]
async fn referrers_of_what_is_no_digest_are_400() {
    let registry = Registry::start().await;
    registry.push("team/app", "1", &Image::of("one")).await;
    for wrong in ["sha256:baddigeststring", "1", "sha256:", "nonsense"] {
        assert_eq!(referrers(&registry, wrong, "").await.status, 400, "{wrong}");
    }
}

// Spec: referrers.6
#[tokio::test]
async fn a_referrer_is_listed_with_its_artifact_type() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let note = Artifact::of(NOTE, "n").about(&image);
    let index = Index::over(&[]).about(&image).with("artifactType", json!(SBOM));
    registry.push("team/app", &note.digest(), &note).await;
    registry.push("team/app", &index.digest(), &index).await;
    let entries = listed(&referrers(&registry, &image.digest(), "").await);
    for (manifest, artifact_type) in [(&note as &dyn Manifest, NOTE), (&index, SBOM)] {
        let entry = entries.iter().find(|entry| entry["digest"] == manifest.digest()).unwrap();
        assert_eq!(entry["artifactType"], artifact_type);
        assert_eq!(entry["mediaType"], manifest.media_type());
        assert_eq!(entry["size"], manifest.bytes().len());
    }
}

// Spec: referrers.7
#[tokio::test]
async fn an_image_without_artifact_type_is_listed_with_its_configs_type() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let (missing, empty) = (Image::of("two"), Image::of("three").with("artifactType", json!("")));
    for referrer in [missing, empty] {
        let referrer = referrer.with("subject", image.descriptor());
        registry.push("team/app", &referrer.digest(), &referrer).await;
        let entries = listed(&referrers(&registry, &image.digest(), "").await);
        let entry = entries.iter().find(|entry| entry["digest"] == referrer.digest()).unwrap();
        assert_eq!(entry["artifactType"], OCI_CONFIG);
    }
}

// Spec: referrers.8
#[tokio::test]
async fn an_index_without_artifact_type_is_listed_without_one() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let index = Index::over(&[]).about(&image);
    registry.push("team/app", &index.digest(), &index).await;
    let entries = listed(&referrers(&registry, &image.digest(), "").await);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].get("artifactType"), None);
}

// Spec: referrers.9
#[tokio::test]
async fn a_referrer_is_listed_with_its_annotations() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let annotations = json!({ "org.opencontainers.image.created": "2026-01-01T07:21:33Z", "org.example.ä": "ü\n\"" });
    let note = Artifact::of(NOTE, "n").about(&image).with("annotations", annotations.clone());
    let index = Index::over(&[]).about(&image).with("annotations", annotations.clone());
    registry.push("team/app", &note.digest(), &note).await;
    registry.push("team/app", &index.digest(), &index).await;
    let entries = listed(&referrers(&registry, &image.digest(), "").await);
    assert_eq!(entries.iter().map(|entry| &entry["annotations"]).collect::<Vec<_>>(), [&annotations; 2]);
}

// Spec: referrers.11, referrers.12, referrers.20
#[tokio::test]
async fn a_list_too_long_for_one_manifest_is_linked_from_page_to_page() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let mut pushed = Vec::new();
    for at in 0..6 {
        // Six descriptors with a megabyte of annotations each are more than a manifest may have.
        let notes: serde_json::Map<_, _> = (0..100).map(|n| (format!("n{n}"), json!("A".repeat(10_000)))).collect();
        let note = Artifact::of(NOTE, &at.to_string()).about(&image).with("annotations", notes.into());
        registry.push("team/app", &note.digest(), &note).await;
        pushed.push(note.digest());
    }
    let (mut seen, mut pages) = (Vec::new(), 0);
    let mut path = Some(format!("/v2/team/app/referrers/{}", image.digest()));
    while let Some(here) = path {
        let reply = registry.get(here).send().await;
        assert!(reply.body.len() <= 4 << 20, "{} bytes are more than clients take", reply.body.len());
        path = reply.header("link").map(|link| {
            let (url, rest) = link.strip_prefix('<').and_then(|link| link.split_once('>')).unwrap();
            assert_eq!(rest.replace(' ', ""), ";rel=\"next\"", "{link}");
            url.to_owned()
        });
        seen.extend(digests(&reply));
        pages += 1;
    }
    assert!(pages > 1, "all of it in one page");
    assert_eq!(sorted(&seen), sorted(&pushed));
}

// Spec: referrers.13, referrers.14
#[tokio::test]
async fn referrers_are_filtered_by_artifact_type_and_the_reply_says_so() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let (note, sbom) = (Artifact::of(NOTE, "n").about(&image), Artifact::of(SBOM, "s").about(&image));
    let plain = Image::of("two").with("subject", image.descriptor());
    registry.push("team/app", &note.digest(), &note).await;
    registry.push("team/app", &sbom.digest(), &sbom).await;
    registry.push("team/app", &plain.digest(), &plain).await;
    for (artifact_type, found) in
        [(NOTE, vec![note.digest()]), (SBOM, vec![sbom.digest()]), (OCI_CONFIG, vec![plain.digest()]), ("x/y", vec![])]
    {
        for written in [artifact_type.to_owned(), artifact_type.replace('/', "%2F").replace('+', "%2B")] {
            let reply = referrers(&registry, &image.digest(), &format!("?artifactType={written}")).await;
            assert_eq!(reply.header("oci-filters-applied"), Some("artifactType"), "{written}");
            assert_eq!(digests(&reply), found, "{written}");
        }
    }
    assert_eq!(referrers(&registry, &image.digest(), "").await.header("oci-filters-applied"), None);
}

// Spec: referrers.19
#[tokio::test]
async fn only_this_repositorys_referrers_of_this_manifest_are_listed() {
    // Invariant 14
    let registry = Registry::start().await;
    let (image, other) = (Image::of("one"), Image::of("two"));
    let note = Artifact::of(NOTE, "n").about(&image);
    registry.push("team/app", &note.digest(), &note).await;
    let about_other = Artifact::of(NOTE, "o").about(&other);
    registry.push("team/app", &about_other.digest(), &about_other).await;
    let elsewhere = Artifact::of(NOTE, "e").about(&image);
    registry.push("team/elsewhere", &elsewhere.digest(), &elsewhere).await;
    assert_eq!(digests(&referrers(&registry, &image.digest(), "").await), [note.digest()]);
}

// Spec: referrers.19
#[tokio::test]
async fn a_deleted_referrer_is_listed_no_more() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let (note, sbom) = (Artifact::of(NOTE, "n").about(&image), Artifact::of(SBOM, "s").about(&image));
    registry.push("team/app", &note.digest(), &note).await;
    registry.push("team/app", "sbom", &sbom).await;
    assert_eq!(registry.delete(format!("/v2/team/app/manifests/{}", note.digest())).send().await.status, 202);
    assert_eq!(registry.delete("/v2/team/app/manifests/sbom").send().await.status, 202, "the tag alone");
    assert_eq!(digests(&referrers(&registry, &image.digest(), "").await), [sbom.digest()]);
}

// Spec: subject.1, referrers.13
#[tokio::test]
async fn an_artifact_of_any_type_that_names_a_subject_as_images_do_refers_to_it() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    let kind = "application/vnd.oci.artifact.manifest.v1+json";
    let artifact = |subject: Value| json!({ "mediaType": kind, "artifactType": SBOM, "blobs": [], "subject": subject, "annotations": { "a": "b" } });
    let put = async |artifact: Value| {
        let put = registry.put(format!("/v2/team/app/manifests/{}", digest_of(artifact.to_string().as_bytes())));
        let reply = put.header("content-type", kind).body(artifact.to_string()).send().await;
        assert_eq!(reply.status, 201, "{reply:?}");
        (digest_of(artifact.to_string().as_bytes()), reply.header("oci-subject").map(str::to_owned))
    };
    let (digest, subject) = put(artifact(image.descriptor())).await;
    assert_eq!(subject, Some(image.digest()));
    // What is written otherwise may mean anything.
    for other in [json!(image.digest()), json!({ "digest": image.digest() }), json!(null), json!(["x"])] {
        assert_eq!(put(artifact(other)).await.1, None);
    }
    for query in [String::new(), format!("?artifactType={SBOM}")] {
        let entries = listed(&referrers(&registry, &image.digest(), &query).await);
        assert_eq!(entries.len(), 1, "{entries:?}");
        let entry = json!({
            "mediaType": kind, "digest": digest, "size": entries[0]["size"], "artifactType": SBOM, "annotations": { "a": "b" },
        });
        assert_eq!(entries[0], entry);
    }
}

// Spec: upgrade.2
#[tokio::test]
async fn every_newly_pushed_referrer_is_listed_whichever_came_first() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let (before, after) = (Artifact::of(NOTE, "before").about(&image), Artifact::of(NOTE, "after").about(&image));
    registry.push("team/app", "before", &before).await;
    registry.push("team/app", "1", &image).await;
    registry.push("team/app", &after.digest(), &after).await;
    let reply = referrers(&registry, &image.digest(), "").await;
    assert_eq!(digests(&reply), sorted(&[before.digest(), after.digest()]));
}

// Spec: upgrade.1, schema.1, schema.2, schema.3
#[tokio::test]
async fn what_an_old_client_listed_under_the_tag_schema_is_listed() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    let (hex256, hex512) = (image.digest(), sha512_of(&image.bytes()));
    let (hex256, hex512) = (&hex256["sha256:".len()..], &hex512["sha512:".len()..]);
    for (subject, tag) in [
        (format!("sha256:{hex256}"), format!("sha256-{hex256}")),
        (format!("sha512:{hex512}"), format!("sha512-{}", &hex512[..64])),
    ] {
        let mut note = Artifact::of(NOTE, &tag).about(&image);
        note.json["subject"]["digest"] = json!(subject);
        // An index that names a stranger too: what has no such subject is no referrer.
        registry.push("team/app", &tag, &Index::over(&[&note, &Image::of("stranger")])).await;
        assert_eq!(digests(&referrers(&registry, &subject, "").await), [note.digest()], "{subject}");
        assert_eq!(registry.get(format!("/v2/team/app/manifests/{tag}")).send().await.status, 200, "{tag} stays a tag");
    }
}
