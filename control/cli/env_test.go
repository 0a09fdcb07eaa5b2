package cli

import (
	"encoding/json"
	"testing"
)

// TestCreateBody: what was not said is not sent, so that the server's defaults
// hold.
func TestCreateBody(t *testing.T) {
	for _, c := range []struct {
		flags createFlags
		want  string
	}{
		{createFlags{}, `{"name":"box"}`},
		{createFlags{gpus: 2, cpus: 0.5, memory: "1GiB", preferRegion: "eu", host: "a", user: "1000:1000", mounts: map[string]string{"/data": "d", "/a": "b"}},
			`{"affinity":{"host":"a"},"mounts":[{"target":"/a","volume":"b"},{"target":"/data","volume":"d"}],"name":"box","prefer":{"region":"eu"},` +
				`"resources":{"gpus":2,"memory":1073741824,"milli_cpu":500},"user":"1000:1000"}`},
	} {
		body, err := c.flags.body("box", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := json.Marshal(body); string(got) != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
	if _, err := (createFlags{disk: "much"}).body("box", nil); err == nil {
		t.Error("a size that is none")
	}
}
