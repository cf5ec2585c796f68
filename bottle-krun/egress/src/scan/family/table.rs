//! The rows: prefixes and shapes of the tokens that are looked for, from their issuers' own words.
//!
//! | not here | why |
//! | --- | --- |
//! | keys without a prefix of four bytes (Twilio, Telegram, Replicate, crates.io) | random text has their shape |
//! | test keys (Stripe's `sk_test_`) | they stand in many a manual |
//! | Slack's webhooks | the address is the secret, and has to be sent |

use super::Kind::{Armor, Base62, Base64, Hex, Letter, Separator, Space, Upper, Word};
use super::Part::{self, Check, Literal, Some, Until};
use super::{Family, Proof};

/// So many different bytes a random token has at least, and what was written by hand seldom has.
const VARIED: Proof = Proof::Random(10, &[]);
/// The same for hexadecimal digits.
const VARIED_HEX: Proof = Proof::Random(8, &[]);
/// The keys in the manuals of AWS.
const NO_EXAMPLE: Proof = Proof::Random(8, &[b"EXAMPLE", b"EXAMPLEK", b"AMPLEKEY"]);

/// What is in every key of OpenAI: `OpenAI` in base64.
const OPENAI: &[u8; 8] = b"T3BlbkFJ";

const fn row(
    name: &'static str,
    prefix: &'static str,
    body: &'static [Part],
    proof: Proof,
) -> Family {
    Family {
        name,
        prefix,
        body,
        proof,
    }
}

const fn github(prefix: &'static str) -> Family {
    row(
        "GitHub Token",
        prefix,
        &[Some(Base62, 30, 30), Check],
        Proof::Shape,
    )
}

const fn openai(prefix: &'static str, name: &'static str) -> Family {
    row(
        name,
        prefix,
        &[Until(Word, OPENAI, 200), Some(Word, 20, 200)],
        VARIED,
    )
}

const fn aws_id(prefix: &'static str) -> Family {
    row("AWS Access ID", prefix, &[Some(Upper, 16, 16)], NO_EXAMPLE)
}

const fn aws_key(prefix: &'static str) -> Family {
    row(
        "AWS Secret Key",
        prefix,
        &[Some(Separator, 1, 8), Some(Base64, 40, 40)],
        NO_EXAMPLE,
    )
}

const fn slack(prefix: &'static str) -> Family {
    row("Slack Token", prefix, &[Some(Word, 24, 255)], VARIED)
}

const fn stripe(prefix: &'static str) -> Family {
    row("Stripe Key", prefix, &[Some(Base62, 24, 247)], VARIED)
}

const fn digital_ocean(prefix: &'static str) -> Family {
    row(
        "DigitalOcean Token",
        prefix,
        &[Some(Hex, 64, 64)],
        VARIED_HEX,
    )
}

const fn shopify(prefix: &'static str) -> Family {
    row("Shopify Token", prefix, &[Some(Hex, 32, 32)], VARIED_HEX)
}

const fn private_key(prefix: &'static str) -> Family {
    // A first line, then whatever is no longer the key's own alphabet ends it.
    row(
        "Private Key Header",
        prefix,
        &[
            Some(Space, 0, 4),
            Some(Base64, 40, 80),
            Some(Armor, 0, 4000),
        ],
        Proof::Random(16, &[]),
    )
}

/// Every family that is looked for.
pub(in super::super) const FAMILIES: &[Family] = &[
    github("ghp_"),
    github("gho_"),
    github("ghu_"),
    github("ghs_"),
    github("ghr_"),
    row(
        "GitHub Fine-Grained PAT",
        "github_pat_",
        &[Some(Base62, 22, 22), Literal(b"_"), Some(Base62, 59, 59)],
        Proof::Random(6, &[]),
    ),
    row("GitLab PAT", "glpat-", &[Some(Word, 20, 300)], VARIED),
    row("GitLab Token", "gldt-", &[Some(Word, 20, 300)], VARIED),
    row("GitLab Token", "glrt-", &[Some(Word, 20, 300)], VARIED),
    row("GitLab Token", "glptt-", &[Some(Hex, 40, 40)], VARIED_HEX),
    row(
        "Anthropic API Key",
        "sk-ant-",
        &[Some(Word, 60, 300)],
        VARIED,
    ),
    row(
        "OpenAI API Key",
        "sk-",
        &[Some(Base62, 20, 20), Literal(OPENAI), Some(Base62, 20, 20)],
        VARIED,
    ),
    openai("sk-proj-", "OpenAI API Key"),
    openai("sk-admin-", "OpenAI API Key"),
    openai("sk-svcacct-", "OpenAI Service Key"),
    row(
        "OpenRouter API Key",
        "sk-or-v1-",
        &[Some(Hex, 64, 64)],
        VARIED_HEX,
    ),
    aws_id("AKIA"),
    aws_id("ASIA"),
    aws_key("aws_secret_access_key"),
    aws_key("AWS_SECRET_ACCESS_KEY"),
    aws_key("SecretAccessKey"),
    aws_key("secretAccessKey"),
    row("Google API Key", "AIza", &[Some(Word, 35, 35)], VARIED),
    row(
        "Google OAuth Secret",
        "GOCSPX-",
        &[Some(Word, 28, 28)],
        VARIED,
    ),
    row(
        "Google OAuth Token",
        "ya29.",
        &[Some(Word, 60, 2000)],
        Proof::Random(16, &[]),
    ),
    row("npm Token", "npm_", &[Some(Base62, 36, 36)], VARIED),
    row("PyPI Token", "pypi-AgE", &[Some(Word, 50, 1000)], VARIED),
    slack("xoxb-"),
    slack("xoxp-"),
    slack("xoxa-"),
    slack("xoxr-"),
    slack("xoxs-"),
    slack("xoxe-"),
    slack("xoxe.xoxb-"),
    slack("xoxe.xoxp-"),
    slack("xapp-1-"),
    stripe("sk_live_"),
    stripe("rk_live_"),
    stripe("whsec_"),
    row(
        "Hugging Face Token",
        "hf_",
        &[Some(Letter, 34, 34)],
        Proof::Mixed(10),
    ),
    row(
        "Hugging Face Token",
        "api_org_",
        &[Some(Letter, 34, 34)],
        Proof::Mixed(10),
    ),
    private_key("-----BEGIN PRIVATE KEY-----"),
    private_key("-----BEGIN RSA PRIVATE KEY-----"),
    private_key("-----BEGIN EC PRIVATE KEY-----"),
    private_key("-----BEGIN DSA PRIVATE KEY-----"),
    private_key("-----BEGIN OPENSSH PRIVATE KEY-----"),
    private_key("-----BEGIN ENCRYPTED PRIVATE KEY-----"),
    private_key("-----BEGIN PGP PRIVATE KEY BLOCK-----"),
    row(
        "JWT Token",
        "eyJ",
        &[
            Some(Word, 12, 300),
            Literal(b".eyJ"),
            Some(Word, 12, 4000),
            Literal(b"."),
            Some(Word, 20, 700),
        ],
        Proof::Random(16, &[]),
    ),
    row(
        "Azure Storage Key",
        "AccountKey=",
        &[Some(Base64, 86, 86), Literal(b"==")],
        VARIED,
    ),
    digital_ocean("dop_v1_"),
    digital_ocean("doo_v1_"),
    digital_ocean("dor_v1_"),
    row(
        "SendGrid API Key",
        "SG.",
        &[Some(Word, 22, 22), Literal(b"."), Some(Word, 43, 43)],
        VARIED,
    ),
    shopify("shpat_"),
    shopify("shpca_"),
    shopify("shppa_"),
    shopify("shpss_"),
    row(
        "Linear API Key",
        "lin_api_",
        &[Some(Base62, 40, 40)],
        VARIED,
    ),
    row("Databricks Token", "dapi", &[Some(Hex, 32, 32)], VARIED_HEX),
    row("Vault Token", "hvs.", &[Some(Word, 90, 300)], VARIED),
    row("Vault Token", "hvb.", &[Some(Word, 90, 300)], VARIED),
    row("Terraform Token", "atlasv1.", &[Some(Word, 60, 80)], VARIED),
    row("Groq API Key", "gsk_", &[Some(Base62, 52, 52)], VARIED),
    row("xAI API Key", "xai-", &[Some(Base62, 80, 80)], VARIED),
    row(
        "Perplexity API Key",
        "pplx-",
        &[Some(Base62, 48, 56)],
        VARIED,
    ),
    row(
        "Docker Hub Token",
        "dckr_pat_",
        &[Some(Word, 27, 27)],
        VARIED,
    ),
    row(
        "Docker Hub Token",
        "dckr_oat_",
        &[Some(Word, 32, 32)],
        VARIED,
    ),
    row("Supabase Token", "sbp_", &[Some(Hex, 40, 40)], VARIED_HEX),
    row(
        "Postman API Key",
        "PMAK-",
        &[Some(Hex, 24, 24), Literal(b"-"), Some(Hex, 34, 34)],
        VARIED_HEX,
    ),
    row("Notion Token", "ntn_", &[Some(Base62, 46, 46)], VARIED),
    row("New Relic Key", "NRAK-", &[Some(Upper, 27, 27)], VARIED),
    row(
        "Grafana Token",
        "glsa_",
        &[Some(Base62, 32, 32), Literal(b"_"), Some(Hex, 8, 8)],
        VARIED,
    ),
    row("Grafana Token", "glc_eyJ", &[Some(Base64, 32, 400)], VARIED),
    row("Sentry Token", "sntryu_", &[Some(Hex, 64, 64)], VARIED_HEX),
    row(
        "Sentry Token",
        "sntrys_eyJ",
        &[Some(Base64, 40, 600)],
        VARIED,
    ),
    row("Pulumi Token", "pul-", &[Some(Hex, 40, 40)], VARIED_HEX),
    row(
        "RubyGems Key",
        "rubygems_",
        &[Some(Hex, 48, 48)],
        VARIED_HEX,
    ),
    row("Heroku Key", "HRKU-AA", &[Some(Word, 58, 58)], VARIED),
    row("Atlassian Token", "ATATT3", &[Some(Word, 170, 250)], VARIED),
    row("Netlify Token", "nfp_", &[Some(Base62, 36, 36)], VARIED),
    row("Figma Token", "figd_", &[Some(Word, 40, 60)], VARIED),
    row("Square Token", "sq0atp-", &[Some(Word, 22, 22)], VARIED),
    row("Square Token", "sq0csp-", &[Some(Word, 43, 43)], VARIED),
    row(
        "PlanetScale Token",
        "pscale_tkn_",
        &[Some(Word, 32, 64)],
        VARIED,
    ),
    row(
        "PlanetScale Token",
        "pscale_pw_",
        &[Some(Word, 32, 64)],
        VARIED,
    ),
    row("Buildkite Token", "bkua_", &[Some(Hex, 40, 40)], VARIED_HEX),
    row(
        "age Secret Key",
        "AGE-SECRET-KEY-1",
        &[Some(Upper, 58, 58)],
        VARIED,
    ),
];

/// Texts behind which a family is not looked for, with the family's name: what they begin is part
/// of an address that a server has signed and given out, or stands in every manual.
pub(in super::super) const SHIELDS: &[(&str, &str)] = &[
    ("X-Amz-Credential=AKIA", "AWS Access ID"),
    ("X-Amz-Credential=ASIA", "AWS Access ID"),
    ("AWSAccessKeyId=AKIA", "AWS Access ID"),
    ("AWSAccessKeyId=ASIA", "AWS Access ID"),
    // The payload of the token on `jwt.io`.
    ("eyJzdWIiOiIxMjM0NTY3ODkwIi", "JWT Token"),
];
