package main

import (
	"os"
	"testing"
)

// TestLicencesAreCurrent: the page has every module that is linked, and none is
// there whose licence forbids it.
func TestLicencesAreCurrent(t *testing.T) {
	t.Parallel()
	want, err := table("../..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/licences.md")
	if err != nil || string(got) != want {
		t.Errorf("docs/licences.md is not what is linked (%v): go run ./deploy/licences", err)
	}
}

func TestTell(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Apache License\n   Version 2.0, January 2004":                                          "Apache-2.0",
		"Permission is hereby granted, free of\ncharge, to any person":                          "MIT",
		"Redistribution and use in source and binary forms … may be used to endorse or promote": "BSD-3-Clause",
		"Redistribution and use in source and binary forms":                                     "BSD-2-Clause",
		"GNU AFFERO GENERAL PUBLIC LICENSE Version 3":                                           "",
		"GNU GENERAL PUBLIC LICENSE Version 2":                                                  "",
		"Server Side Public License VERSION 1":                                                  "",
		"Business Source License 1.1":                                                           "",
		"Eclipse Public License - v 2.0":                                                        "",
		"Redistribution and use in source and binary forms … advertising materials":             "",
		"": "",
	} {
		if got := tell(text); got != want {
			t.Errorf("%.40q is %q, want %q", text, got, want)
		}
	}
}
