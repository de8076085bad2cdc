//! Keys made for the tests, and for nothing else: private ones in DER as base64 (RSA: PKCS #1, others: PKCS #8), public
//! ones as the members of a JWK and as PEM.

use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::EncodingKey;
use serde_json::{Value, json};

/// A pair of keys of one kind.
pub struct Pair {
    private: &'static str,
    /// The public key in a PEM file.
    pub pem: &'static str,
    members: &'static [(&'static str, &'static str)],
}

impl Pair {
    /// The private key.
    pub fn signing(&self) -> EncodingKey {
        let der = STANDARD.decode(self.private).unwrap();
        match self.members[0].1 {
            "RSA" => EncodingKey::from_rsa_der(&der),
            "EC" => EncodingKey::from_ec_der(&der),
            _ => EncodingKey::from_ed_der(&der),
        }
    }

    /// The public key as a JWK, with more members or others; `null` takes one away.
    pub fn jwk(&self, more: &Value) -> Value {
        let mut jwk = json!({});
        let more = more.as_object().unwrap().clone().into_iter();
        for (name, value) in
            self.members.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).chain(more)
        {
            if value.is_null() {
                jwk.as_object_mut().unwrap().remove(&name);
            } else {
                jwk[name] = value;
            }
        }
        jwk
    }
}

/// 2048 bits.
pub const RSA: Pair = Pair {
    private: "\
        MIIEpAIBAAKCAQEAwawuydJW2mr84Q0FFVT0Ur7tqWE795H03C3wBVO9ZJmmUs1GneVNcfT1vdBh6HkWM/h1NaRZZeAKCd72YlQq\
        jQhv2wOFc815sFLM+C0IJ5KjtuQ7Ch0NvRw8IlVguF+im7Nr5HUC85ycQHCQ8B/SawEoZtZyYGmVl3uvQ8TwEJkGft19lmThjuf7\
        +p7E2hbZxC/9qR7ajoBsUPpTHe69kCtTqEJ7IiwyipLDO9GjpWJ0Bni53ngVb1+abc5yrBODqEBnZaH6HCIn8jBqDfrOz/GknthZ\
        cAm+DzSEOW+cNyQ/dCWdTMQySlusdAQnUK+KHkBbZQT+z0gPhtwVPIdXYwIDAQABAoIBADi7taENar/k41sRs1GCZ2ft4jTh9O0a\
        5n2xP0RwOWTE1cIfu/X4++zL80i9SFEPV3+14q/qCv4a2RX3KHm5ahWSSSIBMBCyOll6h+yTVHYzMJ4c0WavCB1DriHonMKl0T6H\
        Gq370PeIAwWlc+/DgqIx3qHxY+P2SgnsA3V4tVJG3s0MD7wZjgLb+QbqPqErCSsQa/1yEdx2HTuByP8sYCrPuBuEKZIzb6qy8MZt\
        0jQxgTM+RmrPO2hU8HnSm/1SEBMjLE1dQFgBDvv+OZnsguY5zHH+aeWaYGi9CQinCeq1dwRutBJdCiPW5d4h8l6EdTfbji9Lu44d\
        ykKpqDLY/wECgYEA6n9e9Us+AdORpgLC6ecfY73vLUO95q3TRCqqT33RifbEiE5yGJmoDlI10tNhptKFX4DxHPIgVBfFkt9C906O\
        HPBt7MmmlUkPG2EdjnISXdiR1QVDtiPrNjWkKbFh1IIVVyVcjVtoanMH+HEQoNHEQwFOOabu+bgUryPLLL+jyqMCgYEA0257Iown\
        noT8MdG7MPdDz6i6mW6bBXIa7q6bRMQgTdN9Ngnvd4s/7D08RqpUZyeR07tGkhuNaUkWwHIncoMSK6686Sx00t9ggrmYWAUeEANW\
        68rT32IlAtxzm2VNdYrEy/WiF2w1t3RQ7vbEDAzXwmACWKTASv5GA3Abxx4dzEECgYEAlg31ZL/GKQMKc5HWyjhUdM3ojC2KCl/3\
        DerDWuSnPkKDVrnj9uv0h12CBauwFEEoiYmIQL6Lg2RG0Io/XuOMuuX7YYdUKrk6iomlkS5bpGPeRdL9lkL704+Vwfw5HvQy1bYZ\
        uHbipSOA2TD4tAAnN71RIkE5MODjk4MzEyp6lEMCgYA6pePMInp+8z6NhzLYk04hFRmlo9OmgA9Oc+qn+YtIa0jJK5pcW6kAm7/T\
        jj3ZW1WNGN6req8QLHD+MuwUTJ1GtrK6L1W8hK/dsyO6DrlXEcYTo/B/f1bq40HCMih5WWPbe6hZvO9tkvs8PgEFoq5awY0FD7Yz\
        VzMOkxNxeT4kwQKBgQDhSMxwUloh8khNLeuNN5tVpZPwmNicHTrXBSgYaPMJxfS/PUctQz2mxzc+uUxryRGXVCtpAPu8so3sulX6\
        9TdA2N6xxQeMf0hRNcF93AYhwiTZ+4owpBiVINLGHukvMtG2xDlQLnTJPChmCyBdlxHWc19bdwdtz8ZmnjpD2gyUMA==",
    pem: "\
-----BEGIN PUBLIC KEY-----\n\
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAwawuydJW2mr84Q0FFVT0\n\
Ur7tqWE795H03C3wBVO9ZJmmUs1GneVNcfT1vdBh6HkWM/h1NaRZZeAKCd72YlQq\n\
jQhv2wOFc815sFLM+C0IJ5KjtuQ7Ch0NvRw8IlVguF+im7Nr5HUC85ycQHCQ8B/S\n\
awEoZtZyYGmVl3uvQ8TwEJkGft19lmThjuf7+p7E2hbZxC/9qR7ajoBsUPpTHe69\n\
kCtTqEJ7IiwyipLDO9GjpWJ0Bni53ngVb1+abc5yrBODqEBnZaH6HCIn8jBqDfrO\n\
z/GknthZcAm+DzSEOW+cNyQ/dCWdTMQySlusdAQnUK+KHkBbZQT+z0gPhtwVPIdX\n\
YwIDAQAB\n\
-----END PUBLIC KEY-----\n\
",
    members: &[
        ("kty", "RSA"),
        (
            "n",
            "wawuydJW2mr84Q0FFVT0Ur7tqWE795H03C3wBVO9ZJmmUs1GneVNcfT1vdBh6HkWM_h1NaRZZeAKCd72YlQqjQhv2wOFc815sFLM-C0IJ5KjtuQ7Ch0NvRw8IlVguF-im7Nr5HUC85ycQHCQ8B_SawEoZtZyYGmVl3uvQ8TwEJkGft19lmThjuf7-p7E2hbZxC_9qR7ajoBsUPpTHe69kCtTqEJ7IiwyipLDO9GjpWJ0Bni53ngVb1-abc5yrBODqEBnZaH6HCIn8jBqDfrOz_GknthZcAm-DzSEOW-cNyQ_dCWdTMQySlusdAQnUK-KHkBbZQT-z0gPhtwVPIdXYw",
        ),
        ("e", "AQAB"),
    ],
};

/// P-256.
pub const P256: Pair = Pair {
    private: "\
        MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg2JOzS8nex1SPIr41pRWU8Zp164OJAtejtPzV5YNsuZihRANCAAQ5\
        8BM9TxxvBfvYbUnaw9Jhz5ituwj6FtpwjbzerePosxskEgqYwAySpmhRpBWc+6vViR1scSlOYg2eV7mlwfou",
    pem: "\
-----BEGIN PUBLIC KEY-----\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEOfATPU8cbwX72G1J2sPSYc+YrbsI\n\
+hbacI283q3j6LMbJBIKmMAMkqZoUaQVnPur1YkdbHEpTmINnle5pcH6Lg==\n\
-----END PUBLIC KEY-----\n\
",
    members: &[
        ("kty", "EC"),
        ("crv", "P-256"),
        ("x", "OfATPU8cbwX72G1J2sPSYc-YrbsI-hbacI283q3j6LM"),
        ("y", "GyQSCpjADJKmaFGkFZz7q9WJHWxxKU5iDZ5XuaXB-i4"),
    ],
};

/// P-384.
pub const P384: Pair = Pair {
    private: "\
        MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGbAgEBBDBJY5xFQMlK2eexA6+EIt2uKbavHRFBSgsVTqseKJYbOeQFrDqwGUSS\
        zN1F61qabRehZANiAASJIdNbwgNXXK5ydPsypSLs2+VgV/BU3Q9cLhqVAuIxz0zir9Zz3C0LwP8pb6h7iUq527NDEOjY8eY5Xlz6\
        7Fd8BL/AEFkdMl4e+qq7tzQo1urA+W1zAhRtAmzcLglIWYM=",
    pem: "\
-----BEGIN PUBLIC KEY-----\n\
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEiSHTW8IDV1yucnT7MqUi7NvlYFfwVN0P\n\
XC4alQLiMc9M4q/Wc9wtC8D/KW+oe4lKuduzQxDo2PHmOV5c+uxXfAS/wBBZHTJe\n\
Hvqqu7c0KNbqwPltcwIUbQJs3C4JSFmD\n\
-----END PUBLIC KEY-----\n\
",
    members: &[
        ("kty", "EC"),
        ("crv", "P-384"),
        ("x", "iSHTW8IDV1yucnT7MqUi7NvlYFfwVN0PXC4alQLiMc9M4q_Wc9wtC8D_KW-oe4lK"),
        ("y", "uduzQxDo2PHmOV5c-uxXfAS_wBBZHTJeHvqqu7c0KNbqwPltcwIUbQJs3C4JSFmD"),
    ],
};

/// Ed25519.
pub const ED25519: Pair = Pair {
    private: "\
        MC4CAQAwBQYDK2VwBCIEIHTl3PSVA++ifwyEE9e8Cf25OjW2YFbXtLVd1rCwRZd3",
    pem: "\
-----BEGIN PUBLIC KEY-----\n\
MCowBQYDK2VwAyEAsvnThV5cWosgxCBm+ELkH//oKyI9e+M997H+oUBbH/4=\n\
-----END PUBLIC KEY-----\n\
",
    members: &[("kty", "OKP"), ("crv", "Ed25519"), ("x", "svnThV5cWosgxCBm-ELkH__oKyI9e-M997H-oUBbH_4")],
};
