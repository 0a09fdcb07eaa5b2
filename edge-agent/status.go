package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/edge-agent/agent"
	"github.com/remotegpu/remotegpu/edge-agent/link"
	"github.com/remotegpu/remotegpu/edge-agent/state"
)

func statusCommand(s *settings) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell how the agent is",
		Long: `Asks the running agent for its server, its link and its workloads. The exit code
is 0 if it is connected, else 1; the last line says why it is not.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := agent.ReadStatus(cmd.Context(), s.RunDir)
			if errors.Is(err, agent.ErrNotRunning) {
				if _, idErr := state.ReadIdentity(s.DataDir); errors.Is(idErr, state.ErrNotEnrolled) {
					err = idErr
				}
			}
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(st)
			} else {
				err = printStatus(cmd.OutOrStdout(), st)
			}
			if err == nil && st.Link.Phase != link.Connected {
				err = errors.New(notConnected(st.Link))
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func notConnected(l link.State) string {
	if l.Message == "" {
		return "not connected yet"
	}
	return l.Message
}

func printStatus(out io.Writer, st agent.Status) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "server\t%s\n", st.Server)
	fmt.Fprintf(w, "host\t%s (%s)\n", st.Name, st.Host)
	fmt.Fprintf(w, "agent\t%s\n", st.Version)
	fmt.Fprintf(w, "link\t%s for %s\n", st.Link.Phase, time.Since(st.Link.Since).Round(time.Second))
	if st.Clock != "" {
		fmt.Fprintf(w, "clock\t%s ahead of the server's\n", st.Clock)
	}
	fmt.Fprintf(w, "document\tgeneration %d, applied %d\n", st.Generation, st.Applied)
	fmt.Fprintf(w, "workloads\t%d\n", len(st.Workloads))
	for _, l := range st.Workloads {
		name := l.Name
		if name == "" {
			name = l.ID
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", name, l.Phase, l.Message)
	}
	return w.Flush()
}
