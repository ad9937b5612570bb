//! Registry proxying: `ns` says which registry a client means.

use crate::support::far::FarRegistry;
use crate::support::site::Sealock;

// Spec: proxy.3, proxy.7
#[tokio::test]
async fn whoever_is_asked_for_a_namespace_answers_with_it() {
    let far = FarRegistry::start().await;
    let image = far.put_image("team/app", "1", &[b"layer"]);
    let site = Sealock::setup().upstream("far", "reg.test", &far).gate_open().start().await;
    for path in ["manifests/1".to_owned(), format!("blobs/{}", image.layers[0])] {
        let reply = site.get(&format!("/v2/team/app/{path}?ns=reg.test")).await;
        assert_eq!((reply.status.as_u16(), reply.header("oci-namespace")), (200, Some("reg.test")), "{path}");
    }
}

// Spec: proxy.3
#[tokio::test]
async fn a_namespace_that_nothing_was_scoped_by_is_not_answered() {
    // Invariant 13
    let far = FarRegistry::start().await;
    far.put_image("team/app", "1", &[b"layer"]);
    let site = Sealock::setup().upstream("far", "reg.test", &far).gate_open().start().await;
    let reply = site.get("/v2/reg.test/team/app/manifests/1").await;
    assert_eq!((reply.status.as_u16(), reply.header("oci-namespace")), (200, None));
    let reply = site.get("/v2/team/app/manifests/1?ns=elsewhere.test").await;
    assert_eq!((reply.status.as_u16(), reply.header("oci-namespace")), (404, None));
}
