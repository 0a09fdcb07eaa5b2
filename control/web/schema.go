package web

import (
	"path"
	"reflect"
	"regexp"
	"strings"
)

var (
	folders = regexp.MustCompile(`[\w.-]*/`)
	breaks  = regexp.MustCompile(`[^A-Za-z0-9]+`)
)

// schemaName names a type in the API document by package and name, so that
// every module may have its own Event: HostEvent, WebListHostEvent.
func schemaName(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	name := hint
	if t.Name() != "" {
		name = path.Base(t.PkgPath()) + "." + t.Name()
	}
	var b strings.Builder
	for _, word := range breaks.Split(folders.ReplaceAllString(name, ""), -1) {
		if word != "" {
			b.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	return b.String()
}
